"""What a proof found, and how `bitvla prove --json` says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

Advance: TypeAlias = Callable[[int], None]
"""Called by a proof after so many of its trials, for a progress bar."""


@dataclass(frozen=True)
class Samples:
    """Measured values behind a figure, for its plot: a distribution, or with `at` a course over it.

    label: of the values, with their unit. limit: what was promised of each value, or None. at_label: of `at`.
    """

    label: str
    values: tuple[float, ...]
    limit: float | None = None
    at: tuple[float, ...] = ()
    at_label: str = ""


@dataclass(frozen=True)
class Trial:
    """One injected fault. stop_ms: until the first stopping command arrived, None where none did. violations: what went wrong."""

    stop_ms: float | None
    violations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fault:
    """Trials of one fault. p99_ms, max_ms: what was promised, None where nothing was."""

    name: str
    trials: tuple[Trial, ...]
    p99_ms: float | None = None
    max_ms: float | None = None

    @property
    def stop_ms(self) -> tuple[float, ...]:
        return tuple(trial.stop_ms for trial in self.trials if trial.stop_ms is not None)

    @property
    def examples(self) -> tuple[str, ...]:
        return tuple(violation for trial in self.trials for violation in trial.violations)

    @property
    def samples(self) -> Samples:
        return Samples("until the first stopping command, ms", self.stop_ms, self.max_ms)

    @property
    def problem(self) -> str | None:
        """What was promised and not kept."""
        summary = self.summary()
        if summary["violations"]:
            return f"{self.name}: {summary['violations']} of {len(self.trials)} trials went wrong, the first: {self.examples[0]}"
        p99 = summary["stop_ms"]["p99"]
        if self.p99_ms is not None and p99 > self.p99_ms:
            return f"{self.name}: p99 of the stop is {p99:.0f} ms; promised are {self.p99_ms:.0f} ms"
        return None

    def summary(self) -> dict[str, Any]:
        """violations: trials with one."""
        return {
            "name": self.name,
            "trials": len(self.trials),
            "stopped": len(self.stop_ms),
            "stop_ms": percentiles(self.stop_ms),
            "violations": sum(bool(trial.violations) for trial in self.trials),
        }


@dataclass(frozen=True)
class Promise:
    """A figure that was promised to be at most `target`. violations: trials that broke the promise. examples: some of them in words.

    player: where the proof is about the player's rhythm, the JSON of it.
    """

    name: str
    trials: int
    violations: int
    value: float
    unit: str
    target: float
    examples: tuple[str, ...] = ()
    samples: Samples | None = None
    player: Mapping[str, Any] | None = None

    @property
    def met(self) -> bool:
        return self.violations == 0 and self.value <= self.target

    @property
    def problem(self) -> str | None:
        if self.met:
            return None
        first = f"; the first: {self.examples[0]}" if self.examples else ""
        value = f"{self.value:g} {self.unit}, promised at most {self.target:g}"
        return f"{self.name}: {value}; {self.violations} violations in {self.trials} trials{first}"

    def summary(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("name", "trials", "violations", "value", "unit", "target", "met")}


@dataclass(frozen=True)
class Fuzz:
    """Malformed messages. crashes: exceptions that nobody expects. nonfinite_out: commands or observations that came out not finite.
    outside: commands that came out beyond a limit."""

    name: str
    messages: int
    crashes: int
    nonfinite_out: int
    outside: int
    refused: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[str, ...] = ()
    samples: Samples | None = None

    @property
    def problem(self) -> str | None:
        if not self.crashes + self.nonfinite_out + self.outside:
            return None
        counts = f"{self.crashes} crashes, {self.nonfinite_out} not finite, {self.outside} beyond a limit"
        return f"fuzz: {counts} in {self.messages} messages" + (f"; the first: {self.examples[0]}" if self.examples else "")

    def summary(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in ("messages", "crashes", "nonfinite_out", "outside")}
        return {**counts, "refused": dict(sorted(self.refused.items()))}


Finding: TypeAlias = Fault | Promise | Fuzz


def percentiles(values: tuple[float, ...]) -> dict[str, float | None]:
    """{"p50", "p99", "max"}: of the values themselves, never between two of them; None where there are none."""
    if not values:
        return {"p50": None, "p99": None, "max": None}
    ranks = (("p50", 50, "lower"), ("p99", 99, "higher"), ("max", 100, "higher"))
    return {name: round(float(np.percentile(values, level, method=method)), 3) for name, level, method in ranks}  # type: ignore[call-overload]


def result_of(findings: list[Finding]) -> dict[str, Any]:
    """The JSON of `bitvla prove`; `error` names what was promised and not kept."""
    fuzz = next((finding for finding in findings if isinstance(finding, Fuzz)), None)
    player = next((finding.player for finding in findings if isinstance(finding, Promise) and finding.player), None)
    result: dict[str, Any] = {
        "faults": [finding.summary() for finding in findings if isinstance(finding, Fault)],
        "promises": [finding.summary() for finding in findings if isinstance(finding, Promise)],
        "fuzz": fuzz and fuzz.summary(),
        "player": player and dict(player),
    }
    problems = [finding.problem for finding in findings if finding.problem]
    if problems:
        result["error"] = "; ".join(problems)
    return result
