"""nonn_sim: accuracy under device failures, without devices.

Virtual time: ``scenario`` files drive the aggregator's own policy in ``engine``; ``live`` runs them on a real cluster.
``enumerate`` gives exact or sampled accuracy under a failure law; the mathematics is in ``nonn.reliability``. It reads
bundles and never imports torch.
"""

__all__: list[str] = []
