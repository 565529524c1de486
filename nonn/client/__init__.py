"""The client of one or several aggregators.

::

    asynchronous  the client for an event loop               (AsyncClient)
    client        calls, and nonn's types                    (Client, Metadata)
    failover      one call, repeated at another aggregator   (Failover)
    order         which aggregator is called, and when
    link          the connection to one aggregator
"""

from nonn.client.asynchronous import AsyncClient
from nonn.client.client import Client, Metadata

__all__ = ["AsyncClient", "Client", "Metadata"]
