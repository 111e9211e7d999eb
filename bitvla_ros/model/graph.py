"""The forward pass on a GPU as CUDA graphs: hundreds of kernels that one call starts, where Python would need longer than the GPU.

A graph is a recording of kernels with the sizes and addresses they were given, so every prompt length needs its own. Buckets are as
narrow as they can be, one length each: in a wider one shorter prompts would be padded, padding needs a mask, and with a mask
scaled_dot_product_attention leaves flash attention, in every chunk. Recording costs a fraction of a second, when an instruction of a
new length comes. And nothing that a graph computes differs from what the network computes without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .bitvla import BitVLA, Inputs, Prediction

GRAPHS = 8  # that are kept; of the prompt lengths, the one that was not used for longest goes first


def predictor(model: BitVLA) -> Callable[[Tensor, Tensor, Tensor | None], Prediction]:
    """`predict` of a model that is where it will stay and as it will stay: through CUDA graphs on a GPU."""
    return GraphedBitVLA(model).predict if model.device.type == "cuda" else model.predict


class Capture(Protocol):
    """Records `run`: how to run it again, on what its inputs hold then, and the tensors that will hold the results."""

    def __call__(self, run: Callable[[], Prediction]) -> tuple[Callable[[], Any], Prediction]: ...


class GraphedBitVLA:
    """A model with the `predict` of BitVLA, for one thread at a time.

    model: on a GPU. Graphs hold the addresses of its tensors, so it must not be moved, cast or packed any more.
    capture: CUDA graphs, where nothing else is given.
    """

    def __init__(self, model: BitVLA, capture: Capture | None = None) -> None:
        self.model = model
        self._capture = capture or CudaCapture(model.device)
        self._graphs: dict[tuple[torch.Size | None, ...], _Graph] = {}  # the last used is last

    @torch.inference_mode()
    def predict(self, pixel_values: Tensor, input_ids: Tensor, proprio: Tensor | None) -> Prediction:
        """Arguments, result and errors are those of `BitVLA.predict`. The first call with a prompt of some length records its graph."""
        inputs = self.model.prepare(pixel_values[None], input_ids[None], None if proprio is None else proprio[None])
        shapes = tuple(None if x is None else x.shape for x in inputs)
        graph = self._graphs.pop(shapes, None)
        if graph is None:
            while len(self._graphs) >= GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            graph = self._record(inputs)
        self._graphs[shapes] = graph
        for place, value in zip(graph.inputs, inputs, strict=True):
            if place is not None and value is not None:
                _copy(place, value)
        graph.replay()
        return Prediction(*(result[0].clone() for result in graph.results))

    @property
    def nbytes(self) -> int:
        """Bytes that inputs and results of all graphs take. What they use in between is shared, and counted nowhere while none runs."""
        return sum(x.nbytes for graph in self._graphs.values() for x in (*graph.inputs, *graph.results) if x is not None)

    def _record(self, inputs: Inputs) -> _Graph:
        own = inputs.to(self.model.device, self.model.dtype)
        own = Inputs._make(None if x is None else x.clone() for x in own)  # not the caller's, where there was nothing to convert
        replay, results = self._capture(lambda: self.model.compute(own))
        return _Graph(own, replay, results)


class CudaCapture:
    """Capture as a CUDA graph on `device`. Graphs share their memory: one must not be replayed while another runs.

    Results are to be copied before the next replay of any of them is started.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(f"a network on {device} cannot become a CUDA graph: move it to a GPU, or call the network's own predict")
        self._device = device
        self._stream = torch.cuda.Stream(device)  # one for all graphs, without which they could not share memory
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], Prediction]) -> tuple[Callable[[], Any], Prediction]:
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                run()  # compiles kernels and makes the libraries' workspaces, which cannot be captured
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # thread_local: what other threads ask of the GPU meanwhile does not end up in the graph, and is not an error
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                results = run()

        def replay() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return replay, results


class _Graph(NamedTuple):
    inputs: Inputs
    replay: Callable[[], Any]
    results: Prediction


def _copy(place: Tensor, value: Tensor) -> None:
    """Through pinned memory where it goes from host to GPU, so that nobody waits; torch keeps that memory until the copy is done."""
    if place.is_cuda and not value.is_cuda:
        value = value.to(place.dtype).pin_memory()
    place.copy_(value, non_blocking=True)
