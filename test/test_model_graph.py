"""The forward pass as a CUDA graph: what replays it, and what makes it capturable. On a machine without a GPU a re-run stands in for
CUDA's replay; like it, it knows nothing but the addresses that it was recorded with, and leaves results at the same place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bitvla_ros.model import BitVLA, Prediction, build
from bitvla_ros.model.bitvla import Inputs
from bitvla_ros.model.config import preset
from bitvla_ros.model.graph import GRAPHS, GraphedBitVLA, predictor

CONFIG = preset("nano")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Recorder:
    """Records like CUDA: the run itself leaves no numbers behind, replays do."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, run: Callable[[], Prediction]) -> tuple[Callable[[], Any], Prediction]:
        self.recorded += 1
        results = Prediction(*(x.new_full(x.shape, torch.nan) for x in run()))

        def replay() -> None:
            for place, value in zip(results, run(), strict=True):
                place.copy_(value)

        return replay, results


def packed(backend: str = "auto", device: str = "cpu", **options: Any) -> BitVLA:
    return build("nano", **options).pack(backend, device)


@pytest.fixture(scope="module")
def model() -> BitVLA:
    return packed()


def observation(words: int, seed: int = 0, cameras: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """An instruction of so many tokens, as `predict` takes it."""
    generator = torch.Generator().manual_seed(seed)
    size, patches = CONFIG.vision.image_size, CONFIG.vision.num_patches
    text = torch.randint(0, 256, (words,), generator=generator)
    images = torch.full((cameras * patches,), CONFIG.image_token_id)
    ids = torch.cat([text[:3], images, torch.tensor([CONFIG.proprio_token_id]), text[3:]])
    return torch.randn(cameras, 3, size, size, generator=generator), ids, torch.randn(8, generator=generator)


def equal(first: Prediction, second: Prediction) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_results_are_those_of_the_network_whatever_comes_in_between(model):
    recorder = Recorder()
    graphed = GraphedBitVLA(model, recorder)
    inputs = [observation(20, seed=1), observation(20, seed=2), observation(31, seed=3), observation(20, seed=4), observation(31, seed=5)]
    assert all(equal(graphed.predict(*x), model.predict(*x)) for x in inputs)
    assert recorder.recorded == 2  # one for each length
    one_camera = observation(20, cameras=1)
    assert equal(graphed.predict(*one_camera), model.predict(*one_camera))
    assert recorder.recorded == 3


def test_words_may_stand_elsewhere_in_a_prompt_of_the_same_length(model):
    recorder = Recorder()
    graphed = GraphedBitVLA(model, recorder)
    pixel_values, ids, proprio = observation(20)
    for moved in (ids, ids.roll(2), ids.flip(0)):
        assert equal(graphed.predict(pixel_values, moved, proprio), model.predict(pixel_values, moved, proprio))
    assert recorder.recorded == 1


def test_a_result_is_not_overwritten_by_the_next(model):
    graphed = GraphedBitVLA(model, Recorder())
    first = graphed.predict(*observation(20, seed=1))
    kept = Prediction(*(x.clone() for x in first))
    graphed.predict(*observation(20, seed=2))
    assert equal(first, kept)


def test_what_the_caller_gave_is_left_alone(model):
    graphed = GraphedBitVLA(model, Recorder())
    first, second = observation(20, seed=1), observation(20, seed=2)
    kept = [x.clone() for x in first]
    graphed.predict(*first)
    graphed.predict(*second)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_graphs_that_were_not_used_for_longest_go_first(model):
    recorder = Recorder()
    graphed = GraphedBitVLA(model, recorder)
    lengths = range(20, 20 + GRAPHS)
    for words in lengths:
        graphed.predict(*observation(words))
    held = graphed.nbytes
    graphed.predict(*observation(20))
    assert recorder.recorded == GRAPHS
    graphed.predict(*observation(20 + GRAPHS))  # in the place of 21, as 20 has just been used
    graphed.predict(*observation(20))
    assert recorder.recorded == GRAPHS + 1
    assert graphed.nbytes < held + held // GRAPHS
    x = observation(21)
    assert equal(graphed.predict(*x), model.predict(*x))
    assert recorder.recorded == GRAPHS + 2


def test_bytes_held_are_inputs_and_results_and_no_table(model):
    graphed = GraphedBitVLA(model, Recorder())
    pixel_values, ids, proprio = observation(20)
    graphed.predict(pixel_values, ids, proprio)
    sequence = len(ids) + 56 + 1
    words = 21 * CONFIG.language.hidden_size  # the stop token is one
    results = 56 * CONFIG.language.hidden_size + 56
    assert graphed.nbytes == 4 * (pixel_values.numel() + words + 8 + results) + 8 * (sequence + 56)


def test_wrong_inputs_raise_the_networks_errors_and_do_no_harm(model):
    recorder = Recorder()
    graphed = GraphedBitVLA(model, recorder)
    pixel_values, ids, proprio = right = observation(20)
    graphed.predict(*right)
    for wrong in (
        (pixel_values[:1], ids, proprio),
        (pixel_values[:, :, 1:], ids, proprio),
        (pixel_values, ids[ids != CONFIG.proprio_token_id], proprio),
        (pixel_values, ids, None),
        (pixel_values, ids, proprio[1:]),
    ):
        with pytest.raises(ValueError) as expected:
            model.predict(*wrong)
        with pytest.raises(ValueError) as raised:
            graphed.predict(*wrong)
        assert str(raised.value) == str(expected.value)
    assert equal(graphed.predict(*right), model.predict(*right))
    assert recorder.recorded == 1


def test_a_recording_that_fails_is_made_again(model):
    recorder = Recorder()

    def fails_once(run: Callable[[], Prediction]) -> tuple[Callable[[], Any], Prediction]:
        recorded = recorder(run)
        if recorder.recorded == 1:
            raise torch.OutOfMemoryError("the GPU is full")
        return recorded

    graphed, x = GraphedBitVLA(model, fails_once), observation(20)
    with pytest.raises(torch.OutOfMemoryError):
        graphed.predict(*x)
    assert graphed.nbytes == 0
    assert equal(graphed.predict(*x), model.predict(*x))


def test_a_network_on_the_cpu_keeps_its_own_predict(model):
    assert predictor(model) == model.predict
    with pytest.raises(ValueError, match="cannot become a CUDA graph"):
        GraphedBitVLA(model)


# ---- what a capture needs: nothing between the first kernel and the last that asks a tensor for its values


class Compute(nn.Module):
    """The device part alone, of tensors alone."""

    def __init__(self, model: BitVLA) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, ...]:
        return tuple(self.model.compute(Inputs(*inputs)))


def prepared(model: BitVLA, words: int, seed: int = 0) -> Inputs:
    pixel_values, ids, proprio = observation(words, seed)
    return model.prepare(pixel_values[None], ids[None], proprio[None])


def test_export_sees_all_of_the_device_part_and_every_ternary_layer_as_an_operator():
    model = packed("cpu")
    exported = torch.export.export(Compute(model), tuple(prepared(model, 20)))
    called = Counter(str(node.target) for node in exported.graph.nodes if node.op == "call_function")
    assert called["bitvla.linear.default"] == len(model.ternary_layers()) == 46
    assert not called.keys() & {"aten.item.default", "aten._local_scalar_dense.default", "aten.nonzero.default"}
    other = prepared(model, 20, seed=1)
    with torch.inference_mode():
        assert equal(Prediction(*exported.module()(*other)), model.compute(other))


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("padded", [False, True])
def test_device_part_asks_for_no_value_and_makes_every_tensor_where_the_network_is(attention, padded):
    """On the meta device, where tensors have no values and do not mix with others."""
    model = packed("reference", "meta")
    model.config = replace(model.config, attention=attention)
    inputs = prepared(model, 20)
    if padded:
        inputs = inputs._replace(padding=torch.zeros(inputs.source.shape, dtype=torch.bool))
    with torch.inference_mode():
        results = model.compute(inputs.to(model.device, model.dtype))
    assert {result.device.type for result in results} == {"meta"}


def test_the_table_stays_behind_and_its_rows_for_words_come_along():
    model = packed("reference", "meta")
    table = model.language.embed_tokens.weight
    assert table.device.type == "cpu"
    ids, words = observation(20)[1], prepared(model, 20).words
    assert torch.equal(words, table[torch.cat([ids[ids < 256], torch.tensor([CONFIG.stop_token_id])])])


# ---- on a GPU


@needs_gpu
def test_cuda_graphs_give_the_bytes_of_the_network():
    model = packed(device="cuda", dtype=torch.bfloat16)
    graphed = GraphedBitVLA(model)
    for words, seed in ((20, 1), (33, 2), (20, 3), (47, 4), (33, 5), (20, 6)):
        x = observation(words, seed)
        assert equal(graphed.predict(*x), model.predict(*x))


@needs_gpu
def test_cuda_graphs_share_their_memory():
    model = packed(device="cuda", dtype=torch.bfloat16)
    model.predict(*observation(60))
    torch.cuda.empty_cache()
    reserved = [torch.cuda.memory_reserved()]
    graphed = GraphedBitVLA(model)
    for words in range(60, 60 - GRAPHS, -1):
        graphed.predict(*observation(words))
        reserved.append(torch.cuda.memory_reserved())
    assert reserved[-1] - reserved[1] < reserved[1] - reserved[0]
