"""ModelInfer messages as bytes: requests read and written, responses written.

Only protobuf parses requests, every time: a cache of parsed messages did not make answers faster, and one parser for
data from the network is safest.

Responses repeat themselves: only the id and the contents of the tensors differ from those before. The rest is
serialised once and kept, since protobuf messages may be concatenated (protobuf.dev, encoding, "Last One Wins").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from nonn.errors import InputError
from nonn.rpc.checksum import check_sealed, model_name, seal
from nonn.rpc.outline import check_outline
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import (
    Array,
    Descriptor,
    Parameter,
    add_descriptors,
    little_endian,
    new_request,
    read_input,
    read_tensors,
    write_parameters,
)

__all__ = ["Request", "choose_outputs", "write_request", "write_response"]


class Request:
    """A ModelInferRequest; its tensors are read on demand.

    Attributes:
        model_name: the requested model.
        model_version: its requested version; empty for any.
        bundle: requested bundle hash (parameter ``nonn_bundle``); None for any.
        outputs: names of the requested outputs; empty for all.
        id: the response repeats it.
        caller: certificate's identity or network address of its sender; empty if unknown.
        connection: of the caller; empty if unknown.
    """

    __slots__ = ("_message", "bundle", "caller", "connection", "id", "model_name", "model_version", "outputs")

    def __init__(self, message: Any) -> None:
        self._message = message
        self.model_name, self.model_version, self.id = message.model_name, message.model_version, message.id
        parameters, outputs = message.parameters, message.outputs
        self.bundle: str | None = parameters["nonn_bundle"].string_param if "nonn_bundle" in parameters else None
        self.caller = self.connection = ""
        self.outputs = tuple([output.name for output in outputs]) if outputs else ()

    def is_for(self, bundle: str) -> bool:
        """Whether the request is for this bundle, by its hash, or for any.

        Raises:
            InputError: what it names is not a hash.
        """
        if self.bundle == "":
            raise InputError("parameter nonn_bundle: must be the hash of a bundle, a string; leave it out for any")
        return self.bundle in (None, bundle)

    @classmethod
    def parse(cls, raw: bytes, model: str | None = None) -> Request:
        """Reads a request.

        Args:
            raw: the message.
            model: name of the server's model, which the checksum leaves out; None does not check it.

        Raises:
            DataLossError: its checksum is wrong.
            InputError: it would cost more than its raw contents; see ``check_outline``.
            DecodeError: the bytes are not a ModelInferRequest.
        """
        if model is not None:
            check_sealed(raw, model_name(model))
        check_outline(raw)
        return cls(pb.ModelInferRequest.FromString(raw))

    def tensors(self) -> dict[str, Array]:
        """Arrays by name; views of the message where its contents are raw.

        Raises:
            InputError: as in ``read_tensors``.
        """
        return read_tensors(self._message.inputs, self._message.raw_input_contents)

    def batch(self, shape: tuple[int, ...], max_samples: int) -> Array:
        """The only input of a nonn model [B, *shape]; see ``read_input``.

        Raises:
            InputError: as in ``read_input``.
        """
        return read_input(self._message.inputs, self._message.raw_input_contents, shape, max_samples)


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
    message = new_request("", tensors, parameters, id)
    for name in outputs:
        message.outputs.add(name=name)
    body = bytes(message.SerializeToString())
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
    descriptors = tuple([(name, array.dtype, array.shape) for name, array in arrays.items()])
    # With the types of values: 1 and True are equal, and different parameters.
    values = tuple([(key, type(value), value) for key, value in parameters.items()])
    contents = pb.ModelInferResponse(id=request.id, raw_output_contents=[array.tobytes() for array in arrays.values()])
    return seal(_frame(name, version, descriptors, values) + contents.SerializeToString())


@lru_cache(maxsize=256)
def _frame(
    name: str, version: str, descriptors: tuple[Descriptor, ...], parameters: tuple[tuple[str, type, Parameter], ...]
) -> bytes:
    """A response without its id and the contents of its tensors."""
    message = pb.ModelInferResponse(model_name=name, model_version=version)
    add_descriptors(message.outputs, descriptors)
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
