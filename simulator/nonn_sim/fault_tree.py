"""Minimal cut sets as a fault tree in the Open-PSA Model Exchange Format, which tools of reliability read.

The top event ``missed`` is an OR of cuts, a cut an AND of devices that have failed. Basic events are independent in
this format, so a law must be one of independent devices.

Reference: Open-PSA initiative, "Open-PSA Model Exchange Format".
"""

from __future__ import annotations

from xml.etree import ElementTree

from nonn.errors import ConfigError
from nonn.reliability.cuts import CutSets
from nonn.reliability.laws import Law
from nonn.reliability.laws.requests import Independent

__all__ = ["fault_tree"]


def fault_tree(found: CutSets, law: Law) -> str:
    """The fault tree as XML.

    Args:
        found: the cut sets.
        law: the failure law, whose devices fail independently.

    Raises:
        ConfigError: devices do not fail independently under the law.
    """
    if not isinstance(law, Independent):
        raise ConfigError(
            f"--fault-tree: under '{law.text}' devices do not fail independently, as the events of a fault tree do; "
            "choose independent, markov or gilbert-elliott"
        )
    root = ElementTree.Element("opsa-mef")
    tree = ElementTree.SubElement(root, "define-fault-tree", name=f"accuracy-below-{found.level:g}")
    top = ElementTree.SubElement(tree, "define-gate", name="missed")
    if not found.cuts or not found.cuts[0].devices:
        ElementTree.SubElement(top, "constant", value="true" if found.cuts else "false")
    else:
        any_cut = ElementTree.SubElement(top, "or") if len(found.cuts) > 1 else top
        for number, cut in enumerate(found.cuts):
            ElementTree.SubElement(any_cut, "gate", name=f"cut-{number}")
            gate = ElementTree.SubElement(tree, "define-gate", name=f"cut-{number}")
            every = ElementTree.SubElement(gate, "and") if len(cut.devices) > 1 else gate
            for device in cut.devices:
                ElementTree.SubElement(every, "basic-event", name=f"device-{device}")
    data = ElementTree.SubElement(root, "model-data")
    for device, p in enumerate(law.p.tolist()):
        event = ElementTree.SubElement(data, "define-basic-event", name=f"device-{device}")
        ElementTree.SubElement(event, "float", value=repr(p))
    ElementTree.indent(root)
    return '<?xml version="1.0"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"
