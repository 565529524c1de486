"""nonn_sim: what happens to accuracy when devices fail, before any device is bought.

Virtual time: ``scenario`` files drive the aggregator's own policy in ``engine``, and ``live`` does the same with a
cluster. ``enumerate`` gives exact or sampled accuracy under a failure law; the mathematics is in
``nonn.reliability``. Never torch: it reads bundles.
"""

__all__: list[str] = []
