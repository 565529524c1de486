"""Nodes that sense, at the aggregator: their streams, and the answers of their windows.

::

    hub        aligns what nodes send, fuses it, and passes each answer on
    servicer   the streams of nodes and of watchers
    state      nodes, clocks and counts as a document
    raw        raw samples, where the owner of a node sends them
"""
