"""ModelInfer messages as bytes: requests read and written, responses written.

Only protobuf parses messages: one parser for data from the network is safest. What is equal in successive messages is
serialised and parsed once (``nonn.rpc.envelope``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from nonn.errors import InputError
from nonn.rpc.checksum import check_sealed, model_name, seal
from nonn.rpc.envelope import Envelopes, lay_out, tag
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import (
    Array,
    Descriptor,
    Parameter,
    add_descriptors,
    little_endian,
    read_tensors,
    write_parameters,
)

__all__ = ["Request", "RequestReader", "choose_outputs", "write_request", "write_response"]

_INPUTS = tag(pb.ModelInferRequest, "raw_input_contents")
_OUTPUTS = tag(pb.ModelInferResponse, "raw_output_contents")


class Request:
    """A ModelInferRequest; its tensors are read on demand.

    Attributes:
        model_name: the requested model.
        model_version: its requested version; empty for any.
        bundle: requested bundle hash (parameter ``nonn_bundle``); None for any.
        outputs: names of the requested outputs; empty for all.
        id: the response repeats it.
        caller: connection that sent it; empty if unknown.
    """

    __slots__ = ("_arrays", "_message", "bundle", "caller", "id", "model_name", "model_version", "outputs")

    def __init__(self, message: Any) -> None:
        self._message = message
        self._arrays: dict[str, Array] | None = None
        self.model_name, self.model_version, self.id = message.model_name, message.model_version, message.id
        parameters, outputs = message.parameters, message.outputs
        self.bundle: str | None = parameters["nonn_bundle"].string_param if "nonn_bundle" in parameters else None
        self.caller = ""
        self.outputs = tuple([output.name for output in outputs]) if outputs else ()

    def again(self, id: str, arrays: dict[str, Array]) -> Request:
        """The same request with another id and other tensors."""
        other = object.__new__(Request)
        other._message, other._arrays, other.caller, other.id = None, arrays, "", id
        other.model_name, other.model_version = self.model_name, self.model_version
        other.bundle, other.outputs = self.bundle, self.outputs
        return other

    def is_for(self, bundle: str) -> bool:
        """Whether the request is for this bundle, by its hash, or for any.

        Raises:
            InputError: what it names is not a hash.
        """
        if self.bundle == "":
            raise InputError("parameter nonn_bundle: must be the hash of a bundle, a string; leave it out for any")
        return self.bundle in (None, bundle)

    @classmethod
    def parse(cls, raw: bytes) -> Request:
        """Reads a request without its checksum.

        Raises:
            DecodeError: the bytes are not a ModelInferRequest.
        """
        return cls(pb.ModelInferRequest.FromString(raw))

    def tensors(self) -> dict[str, Array]:
        """Arrays by name; views of the message where its contents are raw.

        Raises:
            InputError: as in ``read_tensors``.
        """
        if self._arrays is not None:
            return self._arrays
        return read_tensors(self._message.inputs, self._message.raw_input_contents)


class RequestReader:
    """Reads the requests of one server.

    Args:
        model: name of the server's model, which checksums leave out.
    """

    def __init__(self, model: str) -> None:
        self._first = model_name(model)
        # What is known of an envelope: a request, and name, dtype and shape of its tensor.
        self._envelopes = Envelopes[tuple[Request, Descriptor]](pb.ModelInferRequest, "raw_input_contents")

    def read(self, raw: bytes) -> Request:
        """Reads a request.

        Raises:
            DataLossError: its checksum is wrong.
            DecodeError: the bytes are not a ModelInferRequest.
        """
        end = check_sealed(raw, self._first)
        if (found := self._envelopes.find(raw, end)) is not None:
            (request, (name, dtype, shape)), id, contents = found
            return request.again(id, {name: np.frombuffer(contents, dtype).reshape(shape)})
        request = Request.parse(raw)
        self._keep(raw, end, request)
        return request

    def _keep(self, raw: bytes, end: int, request: Request) -> None:
        """Remembers the envelope of a request with one tensor, unless its values must be checked one by one."""
        message = request._message
        if len(message.raw_input_contents) != 1 or (request.id and end == len(raw)):
            return  # without a checksum it is of another program, which writes an id before the tensor
        try:
            tensors = request.tensors()
        except InputError:  # it is refused later
            return
        if len(tensors) == 1:
            ((name, array),) = tensors.items()
            if array.size and array.dtype != np.bool_:
                known = request.again("", {}), (name, array.dtype, array.shape)
                self._envelopes.keep(raw, end, message, known)


def write_request(
    id: str,
    tensors: Mapping[str, Array],
    parameters: Mapping[str, Parameter],
    outputs: Sequence[str] = (),
    *,
    sealed: bool = True,
) -> bytes:
    """A request without a model name, so that nodes share its bytes; each node's name is prepended.

    Protobuf messages may be concatenated (protobuf.dev, encoding, "Last One Wins").

    Args:
        id: the response repeats it.
        tensors: inputs by name.
        parameters: request parameters.
        outputs: names of the requested outputs; empty for all.
        sealed: append the checksum.
    """
    arrays = {name: little_endian(array) for name, array in tensors.items()}
    envelope = _request_envelope(_descriptors(arrays), _values(parameters), tuple(outputs))
    body = lay_out(envelope, id, [array.tobytes() for array in arrays.values()], _INPUTS)
    return seal(body) if sealed else body


def write_response(
    name: str, version: str, request: Request, outputs: Mapping[str, Array], parameters: Mapping[str, Parameter]
) -> bytes:
    """The response to a request, with its checksum.

    Args:
        name: of the model.
        version: of the model.
        request: gives the id, and the outputs to write.
        outputs: arrays by name.
        parameters: response parameters.

    Raises:
        InputError: the request names an unknown output.
    """
    arrays = {name: little_endian(array) for name, array in choose_outputs(request, outputs).items()}
    envelope = _response_envelope(name, version, _descriptors(arrays), _values(parameters))
    return seal(lay_out(envelope, request.id, [array.tobytes() for array in arrays.values()], _OUTPUTS))


def _descriptors(arrays: Mapping[str, Array]) -> tuple[Descriptor, ...]:
    return tuple([(name, array.dtype, array.shape) for name, array in arrays.items()])


# With the types of values: 1 and True are equal, and different parameters.
_Values = tuple[tuple[str, type, Parameter], ...]


def _values(parameters: Mapping[str, Parameter]) -> _Values:
    return tuple([(key, type(value), value) for key, value in parameters.items()])


@lru_cache(maxsize=256)
def _request_envelope(inputs: tuple[Descriptor, ...], parameters: _Values, outputs: tuple[str, ...]) -> bytes:
    """A request without its model's name, its id and the contents of its tensors."""
    message = pb.ModelInferRequest()
    add_descriptors(message.inputs, inputs)
    write_parameters(message.parameters, {key: value for key, _, value in parameters})
    for name in outputs:
        message.outputs.add(name=name)
    return bytes(message.SerializeToString())


@lru_cache(maxsize=256)
def _response_envelope(name: str, version: str, outputs: tuple[Descriptor, ...], parameters: _Values) -> bytes:
    """A response without its id and the contents of its tensors."""
    message = pb.ModelInferResponse(model_name=name, model_version=version)
    add_descriptors(message.outputs, outputs)
    write_parameters(message.parameters, {key: value for key, _, value in parameters})
    return bytes(message.SerializeToString())


def choose_outputs(request: Request, outputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """The outputs that a request names, in its order; all of them if it names none.

    Raises:
        InputError: the request names an unknown output.
    """
    for wanted in request.outputs:
        if wanted not in outputs:
            raise InputError(f"no output '{wanted}'; the model has {', '.join(outputs)}")
    return {wanted: outputs[wanted] for wanted in request.outputs} if request.outputs else outputs
