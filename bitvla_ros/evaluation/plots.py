"""The results of `bitvla bench` as pictures. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT = "#22303c", "#b8c2cc"
OURS = "#0b6e99"
# Peers from the nearest to the farthest idea of the same layer.
PEERS = {
    "int_mm": ("torch int8 (_int_mm)", "#8fb8ca"),
    "fp32": ("torch float32", "#9aa5b1"),
    "bf16": ("torch bfloat16", "#c4ccd4"),
    "fake_quant": ("online fake-quant", "#e0b084"),
}
PARTS = {"preprocess": "#e0b084", "vision": "#3f9ac1", "language": "#0b6e99", "head": "#7b6bb0", "rest": "#c4ccd4"}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def draw(result: dict[str, Any], path: Path | str) -> None:
    """Write a picture of `bitvla bench`'s result, with --kernels or without. path: its ending chooses the format (.png, .svg, .pdf)."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 6.2) if "shapes" in result else (10, 3.6), layout="constrained")
        (_draw_kernels if "shapes" in result else _draw_chunk)(result, figure)
        figure.savefig(path, dpi=150)


def _draw_kernels(result: dict[str, Any], figure: Any) -> None:
    axes = figure.subplots()
    rows = result["shapes"]
    peers = [name for name in PEERS if any(name in row["peer_gmacs"] for row in rows)]
    widest = max(max(row["gmacs"], *row["peer_gmacs"].values()) for row in rows)
    height = 0.8 / (1 + len(peers))
    for place, row in enumerate(rows):
        rates = [row["gmacs"], *(row["peer_gmacs"].get(name, 0.0) for name in peers)]
        for i, rate in enumerate(rates):
            label, color = ("packed ternary", OURS) if i == 0 else PEERS[peers[i - 1]]
            axes.barh(place - 0.4 + (i + 0.5) * height, rate, 0.92 * height, color=color, label=None if place else label)
        of_ceiling = "" if row["vs_ceiling"] is None else f" · {row['vs_ceiling']:.0%} of the ceiling"
        text = f"{row['gmacs']:.0f}{of_ceiling}" + ("" if row["exact"] else " · NOT EXACT")
        inside = row["gmacs"] > 0.3 * widest
        axes.text(
            row["gmacs"],
            place - 0.4 + 0.5 * height,
            f" {text} ",
            ha="right" if inside else "left",
            va="center_baseline",
            fontsize=7.5,
            weight="bold",
            color="white" if inside else OURS,
        )
    if result["ceiling_gmacs"]:
        axes.axvline(result["ceiling_gmacs"], color=INK, linestyle=(0, (4, 3)), linewidth=1)
        label = f"ceiling, registers only: {result['ceiling_gmacs']:.0f}"
        axes.annotate(label, (result["ceiling_gmacs"], 0), (4, 4), ("data", "axes fraction"), "offset points", rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{row['m']} × {row['k']} × {row['n']}\n{row['count']} layers" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("GMAC/s (a billion multiply-accumulates a second)")
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=5, fontsize=8)
    overall = f"{result['weighted_gmacs']:.0f} GMAC/s over the whole chunk"
    _title(figure, f"Every matrix product of a 3b chunk (tokens × inputs × outputs): {overall}")
    _caption(figure, result, f"{result['isa']}, {_plural(result['threads'], 'thread')}")


def _draw_chunk(result: dict[str, Any], figure: Any) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    latency, breakdown = result["latency_ms"], result["breakdown_ms"]
    unit, scale = ("s", 1e-3) if latency["p50"] > 2000 else ("ms", 1.0)
    total = sum(breakdown.values())
    for place, (name, value) in enumerate(breakdown.items()):
        color = PARTS.get(name, FAINT)
        left.barh(place, scale * value, 0.62, color=color)
        text = f"  {scale * value:.{_decimals(scale * value)}f} {unit}, {value / total:.0%}"
        left.text(scale * value, place, text, va="center", fontsize=8)
    left.set_yticks(range(len(breakdown)), list(breakdown))
    left.set_ylim(len(breakdown) - 0.5, -0.5)
    left.set_xlim(0, 1.3 * scale * max(breakdown.values()))
    left.tick_params(axis="y", length=0)
    left.set_xlabel(f"{unit}, medians")
    _title(figure, f"A chunk of {result['preset'] or result['model']}: where the time goes, and how it varies")
    _draw_histogram(right, [scale * value for value in result["latencies_ms"]], unit, scale * latency["p50"], scale * latency["p99"])
    weights = result["weights_bytes"]
    details = f"{result['backend']} backend, {_plural(result['threads'], 'thread')}; ternary weights {weights['ternary'] / 1e6:.0f} MB"
    _caption(figure, result, f"{details}, peak memory {result['peak_rss_bytes'] / 1e6:.0f} MB")


def _draw_histogram(axes: Axes, values: list[float], unit: str, p50: float, p99: float) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.hist(values, bins=max(5, min(30, len(values) // 2)), color=PARTS["vision"], edgecolor="white", linewidth=0.6)
    for value, name in ((p50, "p50"), (p99, "p99")):
        axes.axvline(value, color=INK, linewidth=1, linestyle="-" if name == "p50" else (0, (4, 3)))
        text = f"{name}\n{value:.{_decimals(value)}f} {unit}"
        axes.annotate(text, (value, 1), (0, 3), ("data", "axes fraction"), "offset points", ha="center", fontsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"latency of a chunk, {unit}")
    axes.set_ylabel("chunks")


def _caption(figure: Any, result: dict[str, Any], what: str) -> None:
    idle = {True: "idle machine", False: "machine not idle", None: "load of the machine unknown"}[result["idle"]]
    figure.supxlabel(f"{what}. {result['machine']}; {idle}, {result['date']}.", x=0.01, ha="left", fontsize=7.5, color="#6b7884")


def _title(figure: Any, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=11)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _decimals(value: float) -> int:
    return 0 if value >= 100 else 1 if value >= 10 else 2
