"""Reliability: the mathematics over the table of all subsets of devices. NumPy and SciPy; no device is run.

::

    subsets           subsets as masks, and their probabilities under independent failures
    table             the accuracy of each subset, expected accuracy, Birnbaum importance
    outcomes          which test samples each subset classifies correctly, as packed bits
    confidence        the confidence level of every interval
    intervals         confidence intervals of accuracies and their differences on a finite test set
    evidence          the table and the outcomes together: figures with intervals, choices measured apart
    counted           which subsets of many devices are evaluated
    sampled           the accuracy of these, for more devices than can be enumerated
    sampled_evidence  figures with intervals for these
    laws/             failure laws: how likely each subset is to answer, with and without time
    guarantees        promises such as "accuracy>=0.95 failed<=4", checked exactly
    importance        Shapley values of devices, losses of pairs
    cuts              minimal sets of devices whose failure misses a level
    marginal          what a device adds, under a failure law
    diversity         how differently the devices of a design answer
    similarity        linear CKA of surviving features, and whether it predicts bias
    bias              which classes lose accuracy (CEV, SDE)
    placement         which student runs on which machine
    placement_search  the search for it: branch and bound, local search
    replicas          several devices for each student, exact for any number of devices
    suspicion         evidence over requests that a node lies
"""

__all__: list[str] = []
