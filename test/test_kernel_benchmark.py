"""`bitvla bench --kernels`: what is measured and how figures come of it. No test asserts a time."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from bitvla_ros.evaluation import kernel_benchmark, machine, plots  # noqa: E402
from bitvla_ros.evaluation.workload import Shape, sequence_length, shapes  # noqa: E402
from bitvla_ros.model.config import preset  # noqa: E402
from bitvla_ros.ternary import reference  # noqa: E402

KEYS = {"m", "k", "n", "gmacs", "exact", "vs_ceiling", "vs_fp32", "vs_bf16", "vs_int_mm", "vs_fake_quant"}
TINY = [Shape(18, 32, 48, True, 2), Shape(21, 48, 16, False, 1)]


def sequence(*values: float) -> Callable[[], float]:
    """A clock that gives these times, then the last for ever."""
    rest = list(values)
    return lambda: rest.pop(0) if len(rest) > 1 else rest[0]


def test_published_shapes_come_from_the_preset():
    found = {(shape.m, shape.k, shape.n): shape.layers for shape in shapes(preset("3b"))}
    assert found == {
        (512, 1152, 1152): 104,  # q, k, v and out of 26 vision layers
        (512, 1152, 4304): 26,
        (512, 4304, 1152): 26,
        (634, 2560, 2560): 60,  # q and o of 30 language layers
        (634, 2560, 640): 60,
        (634, 2560, 6912): 60,
        (634, 6912, 2560): 30,
    }
    assert sum(found.values()) == 366


def test_a_chunk_at_a_sequence_of_610_is_1474_gmac():
    config = preset("3b")
    text = 610 - sequence_length(config, text_tokens=0)
    assert sum(shape.macs * shape.layers for shape in shapes(config, text_tokens=text)) == pytest.approx(1474e9, rel=1e-3)


def test_rounds_go_on_until_the_time_is_used_and_slow_candidates_sit_out():
    candidates = {"quantize": sequence(0.1), "linear": sequence(0.2), "fp32": sequence(0.5), "int_mm": sequence(9.0)}
    times = kernel_benchmark.interleave(candidates, seconds=8.0, rounds=100)
    assert set(times[0]) == set(candidates)
    assert all("int_mm" not in row for row in times[1:])
    assert [("fp32" in row) for row in times[:6]] == [True] * 4 + [False] * 2  # 2.0 s are its share
    assert 8.0 <= sum(sum(row.values()) for row in times[1:]) < 8.4
    assert len(kernel_benchmark.interleave(candidates, seconds=8.0, rounds=3)) == 4
    assert len(kernel_benchmark.interleave(candidates, seconds=0.01, rounds=3)) == 2


def test_ratios_are_medians_of_rounds_and_floats_pay_for_quantization():
    shape = Shape(10, 100, 1000, False, 3)  # a million multiply-accumulates
    times = [
        {"quantize": 9.0, "linear": 9.0, "ceiling": 9.0, "fp32": 9.0, "bf16": 9.0, "int_mm": 8e-3},
        {"quantize": 1e-3, "linear": 1e-3, "ceiling": 0.8e-3, "fp32": 6e-3, "bf16": 20e-3},
        {"quantize": 1e-3, "linear": 4e-3, "ceiling": 3.6e-3, "fp32": 20e-3},  # all of it slower: the ratios hardly differ
        {"quantize": 1e-3, "linear": 1e-3, "ceiling": 0.9e-3, "fp32": 10e-3},
    ]
    row = kernel_benchmark.shape_row(shape, times, exact=True)
    assert row["gmacs"] == pytest.approx(1.0) and row["exact"] is True and row["count"] == 3
    assert row["vs_ceiling"] == pytest.approx(0.9)
    assert row["ceiling_gmacs"] == pytest.approx(1 / 0.9, rel=1e-3)
    assert row["vs_fp32"] == pytest.approx(statistics.median([3, 4, 5]))
    assert row["vs_bf16"] == pytest.approx(10)  # of the one round in which it ran
    assert row["vs_int_mm"] == pytest.approx(8)  # of its warm-up, and without our quantization
    assert row["vs_fake_quant"] is None  # it did not run at all


def test_whole_chunk_is_its_work_over_its_time():
    def row(k: int, count: int, linear_ms: float, ratio: float | None) -> dict[str, object]:
        ratios = {f"vs_{name}": ratio for name in kernel_benchmark.OURS}
        return {"m": 1000, "k": k, "n": 1000, "count": count, "linear_ms": linear_ms, "quantize_ms": 0.0, **ratios}

    total = kernel_benchmark.weighted([row(1000, 1, 10.0, 2.0), row(3000, 2, 60.0, 5.0)])
    assert total["chunk_gmac"] == pytest.approx(7.0)
    assert total["weighted_gmacs"] == pytest.approx(7.0 / 0.130, rel=1e-4)  # not the mean of 100 and 50
    assert total["weighted_vs_fp32"] == pytest.approx((10 * 2 + 120 * 5) / 130, rel=1e-4)
    assert kernel_benchmark.weighted([row(1000, 1, 10.0, None), row(1000, 1, 10.0, 2.0)])["weighted_vs_int_mm"] is None


def test_every_shape_is_measured_and_found_exact():
    result = kernel_benchmark.measure(TINY, reference.BACKEND, torch.device("cpu"), seconds=0.05, rounds=2)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert {"shapes", "weighted_gmacs", "ceiling_gmacs", "isa", "machine", "threads", "idle"} <= set(result)
    assert [(row["m"], row["k"], row["n"]) for row in result["shapes"]] == [shape[:3] for shape in TINY]
    for row in result["shapes"]:
        assert set(row) >= KEYS and row["exact"] is True
        assert all(row[key] > 0 for key in KEYS - {"exact", "vs_ceiling", "vs_int_mm"})
    kernel_benchmark.show(result)


class Wrong(reference.ReferenceBackend):
    """Right but where a sum leaves 16 bits, as a kernel with too narrow an accumulator would be."""

    def linear(self, *arguments, **options):
        (y,) = super().linear(*arguments, **options)
        return (y.clamp(-32768, 32767),)


def test_an_accumulator_that_overflows_on_the_largest_rows_is_found():
    wide = [Shape(16, 512, 16, False, 1)]
    result = kernel_benchmark.measure(wide, Wrong(), torch.device("cpu"), seconds=0.01, rounds=1)
    assert result["shapes"][0]["exact"] is False


def test_memory_that_was_never_touched_is_not_resident():
    page = 4096
    tensor = torch.empty(64 << 20, dtype=torch.uint8)
    before = machine.resident_bytes([tensor])
    tensor[: 10 << 20] = 1
    after = machine.resident_bytes([tensor])
    if before == tensor.nbytes:
        pytest.skip("this kernel does not tell which pages are resident")
    assert before < 4 << 20
    assert (10 << 20) - page <= after < 16 << 20  # a huge page may have come with the last
    assert machine.resident_bytes([tensor[5 << 20 : 6 << 20]]) == 1 << 20


def test_own_work_does_not_count_as_load_of_others(monkeypatch):
    usage = iter([(100.0, 50.0, 0.0), (103.0, 52.0, 10.0)])
    monkeypatch.setattr(machine, "_usage", lambda: next(usage))
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1})
    assert machine.OtherLoad().report() == {"idle": False, "others_share": 0.05}  # one busy second of twenty

    usage = iter([(100.0, 50.0, 0.0), (103.0, 52.9, 10.0)])
    assert machine.OtherLoad().report() == {"idle": True, "others_share": 0.005}


def test_usage_of_the_processors_can_be_read_on_linux():
    load = machine.OtherLoad()
    time.sleep(0.02)
    share = load.share()
    assert share is None or 0 <= share < 10


@pytest.mark.parametrize("missing", [None, "vs_int_mm", "vs_ceiling"])
def test_plot_shows_what_there_is(tmp_path, missing):
    pytest.importorskip("matplotlib")
    result = kernel_benchmark.measure(TINY, reference.BACKEND, torch.device("cpu"), seconds=0.01, rounds=1)
    for row in result["shapes"]:
        row |= dict.fromkeys(["vs_ceiling"], 0.9)
        row |= {} if missing is None else {missing: None}
    plots.draw(result, tmp_path / "kernels.png")
    assert (tmp_path / "kernels.png").stat().st_size > 10_000
