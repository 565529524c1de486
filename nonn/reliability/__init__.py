"""Reliability: the mathematics over the table of all subsets of devices. NumPy and SciPy; no device is run.

::

    subsets      subsets as masks, their accuracy, expected accuracy, Birnbaum importance
    intervals    confidence intervals of accuracies and their differences on a finite test set
    outcomes     which test samples each subset classifies correctly, as packed bits
    evidence     the table and the outcomes together: figures with intervals, choices measured apart
    laws         failure laws: how likely each subset is to answer, with and without time
    guarantees   promises such as "accuracy>=0.95 failed<=4", checked exactly
    importance   Shapley values of devices, losses of pairs
    cuts         minimal sets of devices whose failure misses a level
    marginal     what a device adds, under a failure law
    placement    which student runs on which machine
    replicas     several devices for each student, exact for any number of devices
    bias         which classes lose accuracy (CEV, SDE)
"""

__all__: list[str] = []
