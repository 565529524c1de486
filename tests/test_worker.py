from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nonn_device.worker import INLINE_S, REMEMBERED_RUNS, Worker

from nonn.errors import InputError, OverloadError
from nonn.rpc.codec import REMEMBERED, BatchReader, ResponseWriter
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.wire import add_tensors, check_batch, new_request, read_parameters, read_tensors, write_parameters
from tests.serving import TIMEOUT_S

SAMPLE = np.zeros((1, 4), np.float32)


class Student:
    """Notes in which thread it runs, and takes as long on the clock as it is told."""

    def __init__(self) -> None:
        self.now, self.takes_s, self.threads, self.running = 0.0, 0.0, [], 0
        self.block: threading.Event | None = None
        self.started = threading.Event()

    def clock(self):
        return self.now

    def __call__(self, batch):
        self.running += 1
        assert self.running == 1, "two runs at once"
        self.threads.append(threading.current_thread() is threading.main_thread())
        self.started.set()
        if self.block is not None:
            assert self.block.wait(TIMEOUT_S)
        self.now += self.takes_s * len(batch)
        self.running -= 1
        return batch


def test_short_runs_move_into_the_event_loop_and_long_ones_out_again():
    async def scenario():
        student = Student()
        worker = Worker(student, 4, student.clock)
        student.takes_s = INLINE_S / 10
        for _ in range(REMEMBERED_RUNS + 1):
            await worker(SAMPLE)
        await worker(np.zeros((20, 4), np.float32))  # twenty of them take too long
        student.takes_s = INLINE_S * 2  # the device has become slow, which the last runs show
        for _ in range(REMEMBERED_RUNS + 1):
            await worker(SAMPLE)
        worker.close()
        return student.threads

    inline = asyncio.run(scenario())
    assert inline[: REMEMBERED_RUNS + 2] == [False] * REMEMBERED_RUNS + [True, False]
    assert inline[-1] is False


def test_a_full_queue_refuses_and_names_the_limit():
    async def scenario():
        student = Student()
        student.block = threading.Event()
        worker = Worker(student, 2)
        waiting = [asyncio.ensure_future(worker(SAMPLE)) for _ in range(2)]
        await asyncio.to_thread(student.started.wait, TIMEOUT_S)
        with pytest.raises(OverloadError, match=r"2 requests are waiting for this device, its limit \(--max-queue\)"):
            await worker(SAMPLE)
        student.block.set()
        await asyncio.gather(*waiting)
        await worker(SAMPLE)
        worker.close()

    asyncio.run(scenario())


def test_nothing_runs_beside_a_run_whose_caller_has_given_up():
    async def scenario():
        student = Student()
        worker = Worker(student, 4, student.clock)
        student.block = threading.Event()
        first = asyncio.ensure_future(worker(SAMPLE))
        await asyncio.to_thread(student.started.wait, TIMEOUT_S)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        # Its thread still runs: what comes now must wait for it, however short it is known to be.
        worker._sample_s.extend([0.0] * REMEMBERED_RUNS)
        second = asyncio.ensure_future(worker(SAMPLE))
        await asyncio.sleep(0)
        assert not second.done()
        student.block.set()
        await second
        await asyncio.sleep(0)
        assert worker._waiting == 0
        assert await worker(SAMPLE) is SAMPLE
        assert student.threads == [False, False, True]
        worker.close()

    asyncio.run(scenario())


SHAPE = (2, 3)
arrays = st.tuples(
    st.sampled_from([np.uint8, np.float32, np.int32, np.float64]),
    st.sampled_from([(1, 2, 3), (4, 2, 3), (5, 2, 3), (0, 2, 3), (1, 6), (2, 3)]),
    st.integers(0, 2**32 - 1),
)


def random_array(dtype, shape, seed):
    array = np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)
    if seed % 7 == 0 and array.dtype.kind == "f" and array.size:
        array.flat[0] = np.nan
    return array


@settings(deadline=None)  # a busy machine is no failure
@given(cases=st.lists(st.tuples(arrays, st.sampled_from(["", "short", "typed", "name", "twice"])), max_size=12))
def test_a_reader_that_remembers_reads_and_refuses_what_the_plain_one_does(cases):
    reader = BatchReader(SHAPE, max_samples=4)
    for (dtype, shape, seed), fault in cases:
        request = new_request("m", {"input": random_array(dtype, shape, seed)}, {})
        if fault == "short" and request.raw_input_contents[0]:
            request.raw_input_contents[0] = request.raw_input_contents[0][:-1]
        elif fault == "typed":
            request.inputs[0].contents.uint_contents.append(1)
        elif fault == "name":
            request.inputs[0].name = "other"
        elif fault == "twice":
            request.inputs.add().CopyFrom(request.inputs[0])
            request.raw_input_contents.append(request.raw_input_contents[0])
        try:
            expected = check_batch(read_tensors(request.inputs, request.raw_input_contents), SHAPE, 4)
        except InputError as exc:
            with pytest.raises(InputError) as caught:
                reader(request)
            assert str(caught.value) == str(exc)
        else:
            batch = reader(request)
            assert batch.dtype == expected.dtype
            np.testing.assert_array_equal(batch, expected)


outputs = st.dictionaries(st.sampled_from(["features", "logits", "answered"]), arrays, min_size=1)
parameters = st.dictionaries(
    st.sampled_from(["a", "b"]), st.one_of(st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False), st.text())
)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.tuples(outputs, parameters, st.text(max_size=5)), max_size=6))
def test_a_written_response_says_what_protobuf_alone_would(cases):
    write = ResponseWriter("model", "v1")
    for named, values, id in cases:
        tensors = {name: random_array(*array) for name, array in named.items()}
        request = pb.ModelInferRequest(id=id)
        expected = pb.ModelInferResponse(model_name="model", model_version="v1", id=id)
        add_tensors(expected.outputs, expected.raw_output_contents, tensors)
        write_parameters(expected.parameters, values)
        response = pb.ModelInferResponse.FromString(write(request, tensors, values))
        assert response.outputs == expected.outputs
        assert response.raw_output_contents == expected.raw_output_contents
        assert read_parameters(response.parameters) == read_parameters(expected.parameters)
        assert (response.id, response.model_name, response.model_version) == (id, "model", "v1")


def test_what_reader_and_writer_remember_is_bounded():
    reader, write = BatchReader((1,), max_samples=10**6), ResponseWriter("m", "v")
    for i in range(1, 2 * REMEMBERED):
        reader(new_request("m", {"input": np.zeros((i, 1), np.uint8)}, {}))
        write(pb.ModelInferRequest(), {"features": np.zeros((i, 1), np.float32)}, {"n": i})
    assert len(reader._good) <= REMEMBERED
    assert len(write._heads) <= REMEMBERED
