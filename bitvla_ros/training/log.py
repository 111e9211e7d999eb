"""What a training run tells: a row of log.csv a step, and its curves as a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path


class Log:
    """log.csv in a run's folder. A run that goes on from an earlier step takes back the rows that came after it.

    Columns: step, the loss and what the objective tells beside it, gradient_norm, learning_rate, and validation_* where it was
    measured. Loss and errors are in normalised units.
    """

    def __init__(self, path: Path, step: int) -> None:
        """step: how many steps were taken before."""
        self.path = path
        rows = [row for row in read(path) if int(row["step"]) <= step] if path.exists() else []
        self._columns: list[str] = list(rows[0]) if rows else []
        self._rows = rows
        if rows:
            self._write_all()

    def add(self, row: Mapping[str, float]) -> None:
        texts = {name: str(value) if isinstance(value, int) else f"{value:.6g}" for name, value in row.items()}
        self._rows.append(texts)
        if set(texts) <= set(self._columns):
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns, restval="").writerow(texts)
        else:
            self._columns += [name for name in texts if name not in self._columns]
            self._write_all()

    def last(self, name: str) -> float | None:
        return next((float(row[name]) for row in reversed(self._rows) if row.get(name)), None)

    def _write_all(self) -> None:
        partial = self.path.with_name(f".{self.path.name}.partial")
        with partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(self._rows)
        partial.replace(self.path)


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a log; the last one is left out where its writer was killed in it."""
    with path.open(newline="") as file:
        text = file.read()
    rows = list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))
    return [row for row in rows if None not in row.values()]


def draw_curves(log: Path, picture: Path) -> None:
    """The loss of every step, smoothed, and the validation errors, over steps. Needs matplotlib (the extra `plot`)."""
    from matplotlib.figure import Figure

    rows = read(log)
    if not rows:
        return
    steps, losses = [int(row["step"]) for row in rows], [float(row["loss"]) for row in rows]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="#c4ccd4", linewidth=0.6, label="training loss, each step")
    axes.plot(steps, smooth(losses, max(1, len(losses) // 50)), color="#0b6e99", linewidth=1.5, label="training loss, smoothed")
    names = [name for name in rows[-1] if name.startswith("validation_") and any(row.get(name) for row in rows)]
    for name, color in zip(names, ("#d1495b", "#e0b084", "#7b6bb0", "#8fb8ca"), strict=False):
        measured = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        axes.plot(*zip(*measured, strict=True), color=color, marker="o", markersize=3, linewidth=1.2, label=name.replace("_", ", "))
    axes.set_xlabel("step")
    axes.set_ylabel("L1, normalised actions")
    axes.set_ylim(bottom=0, top=1.1 * _quantile(losses, 0.99))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    partial = picture.with_name(f".{picture.name}")
    figure.savefig(partial, dpi=120, format="png")
    partial.replace(picture)


def smooth(values: Sequence[float], width: int) -> list[float]:
    """An exponential mean over about `width` values, without a bias at the beginning."""
    share, mean, weight, smoothed = 1 - 1 / width, 0.0, 0.0, []
    for value in values:
        mean = share * mean + (1 - share) * value
        weight = share * weight + (1 - share)
        smoothed.append(mean / weight)
    return smoothed


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1]
