"""Exports students to the files that devices run: ONNX in float or 8 bits, and C.

``onnx_file`` exports and checks ONNX; ``deploy`` applies the experiment's precision, with ``nonn.export.quantise``.
``c`` translates to C, ``build`` compiles that, ``compiled`` compares it with ONNX Runtime.
"""

from nonn.export.onnx_file import TOLERANCE, export_onnx, run_onnx

__all__ = ["TOLERANCE", "export_onnx", "run_onnx"]
