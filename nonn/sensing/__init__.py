"""Sensing without clock, network or threads: windows from samples, clocks of nodes, and the alignment of windows.

The node, the aggregator and the simulator share these objects; time is always an argument. NumPy only.

===============  =======================================================================
``spec``         what a unit measures: channels, units, rate, window, hop, and its limits
``windows``      samples → windows of the bundle's rate, or the reason why there is none
``pictures``     pictures → one for each instant, or the reason why there is none
``cutter``       the grid of times that both share, and what a window is
``clocks``       offset and drift of a node's clock (minimum-delay filter)
``alignment``    windows of several nodes on one grid, and when each is answered
``smoothing``    the belief in each class after a sequence of windows
``duty``         which units sense, if some of them suffice for an accuracy goal
``columns``      recordings and lines of numbers: channels and units by name
``clock``        the clock of this machine in seconds of the data
===============  =======================================================================
"""

from __future__ import annotations

from nonn.sensing.spec import SensingSpec

__all__ = ["SensingSpec"]
