"""Runs an experiment file, stage by stage, and keeps what is done.

::

    run        design → teacher → partition → students → bundle → placement → report
    workspace  what all stages share                                (progress: what a run reports to)
    pilot      partition.parts = "auto": short runs choose the design
    training   teacher → teacher assistants → partition → students  (stages: folders keyed by a hash of their inputs)
    networks   the untrained networks                               (seeds: random numbers of each part)
    bundling   students and heads become a bundle
    placement  which device runs which student
    comparison every partitioner on the same filters
    study      the published methods and ours, at equal budget (methods: what each changes; evaluation, summary)
    demo       a run, then devices that are killed one by one
"""

__all__: list[str] = []
