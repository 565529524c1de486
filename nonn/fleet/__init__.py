"""Operating a fleet remotely: its hosts, its certificates, and rolling updates that keep an accuracy.

``hosts`` reads the file that Ansible reads too, ``plan`` decides which nodes may move to another bundle when,
``rollout`` does it inside the aggregator, ``control`` is how a command reaches it.
"""
