"""Requests and responses of one model, quickly.

Nearly all requests to a model look alike, and so do its responses: only ids and values differ. What was read or
serialised for one is remembered for the next. On eight nodes that share two cores the code that is left out is cold
every time, and costs ten times what it costs in a loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nonn.errors import InputError
from nonn.rpc.template import ID, REMEMBERED, Templates, field, header
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import DTYPES, Array, Parameter, add_tensors, little_endian, read_tensors, write_parameters

__all__ = ["Request", "RequestReader", "RequestWriter", "ResponseWriter"]


@dataclass(frozen=True, slots=True)
class _Kind:
    """What requests have in common that differ in id and values."""

    model_name: str
    model_version: str
    bundle: str | None
    outputs: tuple[str, ...]


class Request:
    """What a ModelInferRequest says.

    Attributes:
        model_name: of the model that is asked for.
        model_version: the same; empty if any will do.
        bundle: hash of the bundle that the caller means (``nonn_bundle``); None if any will do.
        outputs: names of those that are wanted; empty if all are.
        id: that the response repeats, UTF-8.
    """

    __slots__ = ("_tensors", "bundle", "id", "model_name", "model_version", "outputs")

    def __init__(self, kind: _Kind, id: bytes, tensors: Any) -> None:
        self.model_name, self.model_version, self.id = kind.model_name, kind.model_version, id
        self.bundle, self.outputs = kind.bundle, kind.outputs
        self._tensors = tensors

    def tensors(self) -> dict[str, Array]:
        """Arrays by name; of raw values they are views.

        Raises:
            InputError: as ``read_tensors`` raises it.
        """
        found: dict[str, Array] = self._tensors()
        return found


class RequestReader:
    """Reads requests."""

    def __init__(self) -> None:
        # With the name, dtype and shape of the only tensor.
        self._known: Templates[tuple[_Kind, str, np.dtype[Any], tuple[int, ...]]] = Templates("raw_input_contents")

    def __call__(self, raw: bytes) -> Request:
        """What the bytes of a request say; its tensors are looked at later.

        Raises:
            DecodeError: they are no request.
        """
        known = self._known.find(raw)
        if known is not None:
            template, (kind, name, dtype, shape) = known
            return Request(kind, raw[template.id], lambda: {name: template.array(raw, dtype, shape)})
        message = pb.ModelInferRequest.FromString(raw)
        bundle = message.parameters["nonn_bundle"].string_param if "nonn_bundle" in message.parameters else None
        outputs = tuple(output.name for output in message.outputs)
        kind = _Kind(message.model_name, message.model_version, bundle, outputs)
        return Request(kind, message.id.encode(), partial(self._read, raw, message, kind))

    def _read(self, raw: bytes, message: Any, kind: _Kind) -> dict[str, Array]:
        tensors = read_tensors(message.inputs, message.raw_input_contents)
        if len(tensors) == 1:
            ((name, array),) = tensors.items()
            if array.dtype != DTYPES["BOOL"]:  # whose values are looked at
                self._known.learn(raw, message, (kind, name, array.dtype, array.shape))
        return tensors


class _Writer:
    """Serialises messages that differ in id and values.

    A message may be concatenated from pieces (protobuf.dev, encoding, "Last One Wins"): the piece without id and values
    is made once for each set of shapes and parameters.

    Args:
        message: what all have in common.
        tensors: name of its repeated field of tensors.
        values: name of its repeated field of raw values.
    """

    def __init__(self, message: Any, tensors: str, values: str) -> None:
        self._message, self._tensors, self._values = message, tensors, values
        self._number = message.DESCRIPTOR.fields_by_name[values].number
        # For each set: the piece, and what goes before the values of each tensor.
        self._heads: dict[Any, tuple[bytes, tuple[bytes, ...]]] = {}

    def write(self, id: bytes, arrays: Mapping[str, Array], parameters: Mapping[str, Parameter]) -> bytes:
        """A message's bytes."""
        key = tuple((n, a.dtype.char, a.shape) for n, a in arrays.items()), tuple(parameters.items())
        head = self._heads.get(key)
        if head is None:
            if len(self._heads) >= REMEMBERED:
                self._heads.clear()
            head = self._heads[key] = self._head(arrays, parameters)
        pieces = [head[0], field(ID, id)] if id else [head[0]]
        for before, array in zip(head[1], arrays.values(), strict=True):
            pieces += before, little_endian(array).tobytes()
        return b"".join(pieces)

    def _head(
        self, arrays: Mapping[str, Array], parameters: Mapping[str, Parameter]
    ) -> tuple[bytes, tuple[bytes, ...]]:
        message, raws = type(self._message)(), list[bytes]()
        message.CopyFrom(self._message)
        add_tensors(getattr(message, self._tensors), raws, arrays)
        write_parameters(message.parameters, parameters)
        return bytes(message.SerializeToString()), tuple(header(self._number, len(raw)) for raw in raws)


class RequestWriter(_Writer):
    """Serialises requests of one input; which model they are for is a piece of its own.

    Args:
        outputs: names of those that are wanted; empty if all are.
    """

    def __init__(self, outputs: Sequence[str] = ()) -> None:
        message = pb.ModelInferRequest()
        for name in outputs:
            message.outputs.add(name=name)
        super().__init__(message, "inputs", "raw_input_contents")


class ResponseWriter(_Writer):
    """Serialises responses.

    Args:
        name: of the model.
        version: of the model.
    """

    def __init__(self, name: str, version: str) -> None:
        super().__init__(
            pb.ModelInferResponse(model_name=name, model_version=version), "outputs", "raw_output_contents"
        )

    def __call__(self, request: Request, outputs: Mapping[str, Array], parameters: Mapping[str, Parameter]) -> bytes:
        """The response's bytes.

        Args:
            request: that is answered.
            outputs: arrays by name.
            parameters: response parameters.

        Raises:
            InputError: the request names an output that there is not.
        """
        for name in request.outputs:
            if name not in outputs:
                raise InputError(f"no output '{name}'; the model has {', '.join(outputs)}")
        wanted = {name: outputs[name] for name in request.outputs} if request.outputs else outputs
        return self.write(request.id, wanted, parameters)
