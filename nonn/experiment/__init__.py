"""Runs an experiment file stage by stage, and keeps finished stages.

::

    run        design → teacher → partition → students → bundle → placement → report
    workspace  state that all stages share                          (progress: the interface for reporting)
    search     student.model = "search:wrn-DEPTH": chooses the width of each stage
    pilot      partition.parts = "auto": chooses the design by short runs
    training   teacher → teacher assistants → partition → students  (stages: folders; keys: hashes of their inputs)
    networks   the untrained networks                               (seeds: a random stream per purpose)
    bundling   builds the bundle from students and heads            (kept: earlier bundles, what runs hold)
    placement  chooses which device runs which student
    comparison every partitioner on the same filters
    study      published methods and ours at equal budget           (methods: their changes; evaluation, summary)
    demo       a run, then kills its devices one by one
"""

__all__: list[str] = []
