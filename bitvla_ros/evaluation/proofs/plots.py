"""Findings as pictures: a distribution against what was promised, or a course over time. Needs matplotlib (the extra `plot`)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..plots import INK, PARTS, STYLE
from .findings import Fault, Samples, percentiles

PROMISED, MISSED = "#2f8f5b", "#c8453b"


def draw_faults(faults: Sequence[Fault], path: Path) -> None:
    """Every trial of every fault as a dot, with median and 99th percentile, and the promised maximum where there is one."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 1.3 + 0.42 * len(faults)), layout="constrained")
        axes = figure.subplots()
        jitter = np.random.default_rng(0)
        longest = max((max(*fault.stop_ms, fault.max_ms or 0.0) for fault in faults if fault.stop_ms), default=1.0)
        for row, fault in enumerate(faults):
            times = np.array(fault.stop_ms)
            if not len(times):
                axes.text(0, row, "  no trial stopped the arm", va="center", color=MISSED)
                continue
            axes.plot(times, row + jitter.uniform(-0.22, 0.22, len(times)), ".", color=PARTS["vision"], alpha=0.45, markersize=4)
            p50, p99 = (float(value or 0.0) for value in list(percentiles(fault.stop_ms).values())[:2])
            axes.plot([p50, p50], [row - 0.32, row + 0.32], color=INK, linewidth=1.6)
            axes.plot([p99, p99], [row - 0.32, row + 0.32], color=INK, linewidth=1.2, linestyle=(0, (2, 1.5)))
            if fault.max_ms is not None:
                color = MISSED if times.max() > fault.max_ms else PROMISED
                axes.plot([fault.max_ms, fault.max_ms], [row - 0.42, row + 0.42], color=color, linewidth=2.2)
            axes.text(1.02 * longest, row, f"{p50:.0f} / {p99:.0f} / {times.max():.0f}", va="center", fontsize=8)
        axes.text(1.02 * longest, -0.75, "p50 / p99 / max", va="center", fontsize=8, color="#6b7884")
        axes.set_yticks(range(len(faults)), [f"{fault.name} ({len(fault.trials)})" for fault in faults])
        axes.set_ylim(len(faults) - 0.5, -1.0)
        axes.set_xlim(0, 1.2 * longest)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("ms from the fault to the first stopping command; line: median, dashed: p99, thick: promised maximum")
        figure.savefig(path, dpi=150)


def draw_samples(title: str, samples: Samples, kept: bool, path: Path) -> None:
    """A histogram with the limit, or with `at` a line. kept: whether the promise was; the limit's colour says so."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 2.9), layout="constrained")
        axes = figure.subplots()
        values = np.array(samples.values)
        if samples.at:
            axes.plot(samples.at, values, color=PARTS["language"], linewidth=1.2)
            axes.set_xlabel(samples.at_label)
            axes.set_ylabel(samples.label)
            axes.set_ylim(0, 1.15 * float(values.max(initial=1e-9)))
        else:
            edges = np.histogram_bin_edges(values if samples.limit is None else np.append(values, samples.limit), bins=60)
            axes.hist(values, bins=edges.tolist(), color=PARTS["vision"], edgecolor="white", linewidth=0.3, log=len(values) > 100)
            axes.set_xlabel(samples.label)
            axes.set_ylabel("count")
        if samples.limit is not None:
            (axes.axhline if samples.at else axes.axvline)(samples.limit, color=PROMISED if kept else MISSED, linewidth=2)
        axes.set_title(textwrap.fill(title, 72), loc="left", fontsize=10)
        figure.savefig(path, dpi=150)
