"""What people and machines see of a running aggregator.

``events`` is what observers receive, ``monitor`` makes the ``state`` that is shown (``snapshot``, ``timeline``,
``faultlog``), ``drift`` names a node that answers but has gone bad (``baseline``: what it is compared with),
``metrics`` is Prometheus, ``dashboard`` HTTP, ``options`` what ``nonn serve`` can be told of all this.
"""

__all__: list[str] = []
