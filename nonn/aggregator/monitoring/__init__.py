"""Monitoring of a running aggregator.

``events`` defines what observers receive, ``monitor`` builds the ``state`` that is shown (``snapshot``, ``timeline``,
``faultlog``), ``drift`` detects a node that answers but has gone bad (``baseline``: its reference), ``metrics`` exports
to Prometheus, ``dashboard`` serves HTTP, ``options`` has the options of ``nonn serve`` for all of this.
"""

__all__: list[str] = []
