"""The report of `bitvla prove`: a folder that keeps each finding, and a page of Markdown with tables and plots of all of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..machine import machine
from . import plots
from .findings import Fault, Finding, Fuzz, Promise, Samples, Trial

PAGE = "report.md"
_KINDS: dict[str, type[Finding]] = {"fault": Fault, "promise": Promise, "fuzz": Fuzz}


@dataclass(frozen=True)
class Measured:
    """A finding, and how it came about. what: the proof in a line. unit: of its trials. seed: of what was drawn. date: of its end.
    others_share: of the processors' time, taken by others meanwhile (machine.OtherLoad); None where unknown. code: revision.revision()
    when it began."""

    finding: Finding
    what: str
    unit: str
    seed: int
    others_share: float | None
    code: str
    machine: str = field(default_factory=machine)
    date: str = field(default_factory=lambda: f"{datetime.now(timezone.utc):%Y-%m-%d}")

    def save(self, folder: Path) -> None:
        """Keep it as `folder`/NAME.json, in one step."""
        folder.mkdir(parents=True, exist_ok=True)
        kind = next(name for name, cls in _KINDS.items() if isinstance(self.finding, cls))
        _write(folder / f"{self.finding.name}.json", json.dumps({"kind": kind, **asdict(self)}))

    @classmethod
    def load(cls, path: Path) -> Measured:
        """What `save` has kept."""
        kept = json.loads(path.read_text(encoding="utf-8"))
        kind, finding = _KINDS[kept.pop("kind")], kept.pop("finding")
        if kind is Fault:
            finding["trials"] = tuple(Trial(trial["stop_ms"], tuple(trial["violations"])) for trial in finding["trials"])
        else:
            finding["examples"] = tuple(finding["examples"])
            if finding["samples"] is not None:
                samples: dict[str, Any] = finding["samples"]
                finding["samples"] = Samples(**{**samples, "values": tuple(samples["values"]), "at": tuple(samples["at"])})
        return cls(kind(**finding), **kept)


def write_report(folder: Path, names: Sequence[str]) -> Path:
    """Write `folder`/report.md and its pictures from the findings kept there, of these proofs in this order; the page's path."""
    measured = [Measured.load(path) for name in names if (path := folder / f"{name}.json").is_file()]
    lines = ["# Proofs", "", *sections(measured, folder)]
    wrong = [(entry.finding.name, example) for entry in measured for example in entry.finding.examples[:5]]
    if wrong:
        lines += ["## What went wrong", "", *(f"- {name}: {example}" for name, example in wrong), ""]
    _write(folder / PAGE, "\n".join(lines))
    return folder / PAGE


def sections(measured: Sequence[Measured], folder: Path) -> list[str]:
    """Lines of Markdown; the pictures that they show are written to `folder`."""
    lines = [conditions(measured), ""]
    faults = [entry for entry in measured if isinstance(entry.finding, Fault)]
    if faults:
        plots.draw_faults([entry.finding for entry in faults if isinstance(entry.finding, Fault)], folder / "faults.png")
        lines += ["## Faults", "", *fault_table(faults), "", "![ms until the first stopping command](faults.png)", ""]
    promises = [entry for entry in measured if isinstance(entry.finding, Promise)]
    if promises:
        lines += ["## Promises", "", *promise_table(promises), ""]
    for entry in promises:
        if isinstance(entry.finding, Promise) and entry.finding.player is not None:
            lines += [_rhythm(entry.finding.player), ""]
    for entry in measured:
        if isinstance(entry.finding, Fuzz):
            lines += ["## Malformed messages", "", *fuzz_table(entry), ""]
    for entry in promises:
        promise = entry.finding
        if isinstance(promise, Promise) and promise.samples is not None and promise.samples.values:
            plots.draw_samples(f"{promise.name}: {entry.what}", promise.samples, promise.met, folder / f"{promise.name}.png")
            lines += [f"![{promise.samples.label}]({promise.name}.png)", ""]
    return lines


def conditions(measured: Sequence[Measured]) -> str:
    """Where and when."""
    machines, dates = (", ".join(sorted({getattr(entry, name) for entry in measured})) for name in ("machine", "date"))
    seeds = ", ".join(map(str, sorted({entry.seed for entry in measured})))
    others = "Others: the share of the processors' time that went to anything else meanwhile. Code: the commit"
    return f"{machines}; {dates}; seed {seeds}. {others}."


def _circumstances(entry: Measured) -> tuple[str, str]:
    return "unknown" if entry.others_share is None else f"{entry.others_share:.1%}", f"`{entry.code}`"


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def fault_table(measured: Sequence[Measured]) -> list[str]:
    head = ("fault", "what", "trials", "stopped", "p50, ms", "p99, ms", "max, ms", "promised", "violations", "others", "code")
    rows: list[tuple[Any, ...]] = [head]
    for entry in measured:
        fault = entry.finding
        assert isinstance(fault, Fault)
        summary = fault.summary()
        times = ("–" if value is None else f"{value:.0f}" for value in summary["stop_ms"].values())
        promised = [f"{name} {limit:.0f}" for name, limit in (("p99", fault.p99_ms), ("max", fault.max_ms)) if limit is not None]
        words = ", ".join(promised) or "plan's end + a step"
        counts = summary["trials"], summary["stopped"]
        rows.append((f"`{fault.name}`", entry.what, *counts, *times, words, summary["violations"], *_circumstances(entry)))
    return table(rows)


def promise_table(measured: Sequence[Measured]) -> list[str]:
    rows: list[tuple[Any, ...]] = [("promise", "what", "trials", "value", "target", "violations", "kept", "others", "code")]
    for entry in measured:
        promise = entry.finding
        assert isinstance(promise, Promise)
        trials, value = f"{promise.trials:,} {entry.unit}", f"{promise.value:g} {promise.unit}"
        kept = promise.violations, "yes" if promise.met else "**no**"
        rows.append((f"`{promise.name}`", entry.what, trials, value, f"{promise.target:g}", *kept, *_circumstances(entry)))
    return table(rows)


def _rhythm(player: Mapping[str, Any]) -> str:
    words = [f"{rhythm['misses']:,} missed, jitter p99 {rhythm['jitter_ms']['p99']:.2f} ms" for rhythm in (player, player["arrival"])]
    return f"The player sent {player['rate_hz']:.2f} setpoints a second: {words[0]}. As they arrived: {words[1]}."


def fuzz_table(entry: Measured) -> list[str]:
    fuzz = entry.finding
    assert isinstance(fuzz, Fuzz)
    rows: list[tuple[Any, ...]] = [("messages", "crashes", "not finite", "beyond a limit", "others", "code")]
    rows.append((f"{fuzz.messages:,}", fuzz.crashes, fuzz.nonfinite_out, fuzz.outside, *_circumstances(entry)))
    reasons = ", ".join(f"{name} {count:,}" for name, count in sorted(fuzz.refused.items(), key=lambda item: -item[1]))
    return [*table(rows), "", f"Refused: {reasons}."]


def table(rows: Sequence[tuple[Any, ...]]) -> list[str]:
    """The first row is the heading."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]
