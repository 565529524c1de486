"""Operating a fleet remotely: its hosts, its certificates, and rolling updates that keep an accuracy floor.

``hosts`` reads the inventory that Ansible also reads, ``plan`` decides when which nodes may move to another bundle,
``rollout`` carries it out inside the aggregator, ``control`` connects commands to it.
"""
