"""nonn: one teacher, many small students on devices that fail, one answer.

Data flows one way, and a module imports upstream only::

    data → teacher → filters → partition → students + distill → export → bundle
    bundle → nonn_device (one student a device) → aggregator → answer → report
    bundle → nonn_sim (what happens to accuracy when devices fail)

torch is imported by data.augment, teacher, trainer, students, distill, export and who runs them (pipeline and its
parts, study) only: devices, the aggregator and the simulator run without it.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
