"""nonn_sim: what happens to accuracy when devices fail, before anybody buys them.

Exact mathematics where there is some: ``enumerate`` (accuracy of all answering sets), ``laws`` (how devices fail),
``guarantees``, ``value`` (which devices matter), ``placement`` (which student runs where). Virtual time where there is
not: ``scenario`` files, driving the aggregator's own policy. Never torch: it reads bundles.
"""

__all__: list[str] = []
