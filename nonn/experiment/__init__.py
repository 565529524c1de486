"""Runs an experiment file, stage by stage, and keeps what is done.

::

    run        teacher → partition → students → bundle → report     (stages: folders keyed by a hash of their inputs)
    networks   the untrained networks                               (seeds: random numbers of each part)
    bundling   students and heads become a bundle
    pilot      partition.parts = "auto": short runs choose the design
    study      the published methods and ours, at equal budget (methods: what each changes; evaluation, summary)
    demo       a run, then devices that are killed one by one
"""

__all__: list[str] = []
