"""What an ablation found: rows of numbers from its runs, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .intervals import paired_difference, wilson

REFERENCE = "full"  # the arm that the others are compared with

HEADERS = ("", "success", "against full precision", "action error", "packed", "bf16")


def summarise(titles: Mapping[str, str], runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One row an arm. titles: arm -> what it is. runs: arm -> its run.json of each training seed, in one order in all arms.

    Episodes are pooled over suites and training seeds. Intervals: 95 %, Wilson's of a rate and Newcombe's of the paired difference to
    the reference (intervals.py), as fractions. They count episodes as independent, which those of one trained network are not quite.
    """
    reference = _outcomes(runs[REFERENCE])
    rows = []
    for arm, title in titles.items():
        own = runs[arm]
        outcomes = _outcomes(own)
        if outcomes.keys() != reference.keys():
            raise ValueError(f"arm {arm} played other episodes than {REFERENCE}: their runs do not belong together")
        episodes = list(reference)
        row = {"arm": arm, "title": title, "training_seeds": len(own), **_rate([outcomes[episode] for episode in episodes])}
        suites = dict.fromkeys(suite for _, suite, _, _ in episodes)
        row["by_suite"] = {suite: _rate([outcomes[e] for e in episodes if e[1] == suite]) for suite in suites}
        row["difference"] = None
        if arm != REFERENCE:
            found = paired_difference([outcomes[e] for e in episodes], [reference[e] for e in episodes])
            row["difference"] = {"mean": round(found.difference, 4), "interval": [round(found.low, 4), round(found.high, 4)]}
        row["action_error"] = {
            name: round(sum(run["action_error"][name] for run in own) / len(own), 5) for name in own[0]["action_error"]
        }
        row |= {name: own[0][name] for name in ("steps", "bytes")}
        row["training_seconds"] = round(sum(run["training_seconds"] for run in own), 1)
        rows.append(row)
    return rows


def _outcomes(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[int, str, int, int], bool]:
    """(training seed, suite, task, seed) -> success."""
    return {
        (run["seed"], suite, episode["task"], episode["seed"]): bool(episode["success"])
        for run in runs
        for suite, episodes in run["episodes"].items()
        for episode in episodes
    }


def _rate(outcomes: Sequence[bool]) -> dict[str, Any]:
    successes = sum(outcomes)
    low, high = wilson(successes, len(outcomes))
    rate = successes / len(outcomes)
    return {"episodes": len(outcomes), "successes": successes, "success_rate": round(rate, 4), "interval": [round(low, 4), round(high, 4)]}


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row as text, under HEADERS."""
    difference = row["difference"]
    return [
        row["title"],
        f"{_percent(row['success_rate'])} % [{_span(row['interval'])}]",
        "" if difference is None else f"{100 * difference['mean']:+.1f} [{_span(difference['interval'], '+.1f')}]",
        f"{row['action_error']['l1']:.4f}",
        f"{row['bytes']['packed'] / 1e6:.2f} MB",
        f"{row['bytes']['bf16'] / 1e6:.2f} MB",
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """The table, one column a suite where there are several, and what it says about how it was made."""
    suites = list(result["suites"]) if len(result["suites"]) > 1 else []
    headers = [*HEADERS[:2], *suites, *HEADERS[2:]]
    lines = [f"| {' | '.join(headers)} |", f"|{'---|' * len(headers)}"]
    for row in result["arms"]:
        text = cells(row)
        by_suite = [f"{_percent(found['success_rate'])} % [{_span(found['interval'])}]" for found in row["by_suite"].values()]
        lines.append(f"| {' | '.join([*text[:2], *(by_suite if suites else []), *text[2:]])} |")
    return "\n".join([*lines, "", *notes(result)]) + "\n"


def notes(result: Mapping[str, Any]) -> list[str]:
    first = result["arms"][0]
    return [
        f"Every row: {_plural(first['episodes'], 'episode')}, {result['episodes']} a suite ({', '.join(result['suites'])}) for each of "
        f"{_plural(first['training_seeds'], 'training seed')}, with the same initial states in every row. Brackets: 95 % intervals, "
        "Wilson's of a rate, Newcombe's of a paired difference, in points. Action error: mean absolute error of normalised actions, of "
        "held-out episodes.",
        f"Every row has {_plural(result['steps'], 'optimizer step')} of {_plural(result['batch_size'], 'sample')} behind it. The rows of a "
        "ternary vision tower by plain training and by quantize-then-distill have a ternary language model too; they share a teacher, "
        f"ternary in its language model alone, of {_plural(result['teacher_steps'], 'step')}, and train the vision tower alone for "
        f"{_plural(result['student_steps'], 'step')} more.",
    ]


def draw(result: Mapping[str, Any], path: Path) -> None:
    """A picture: success with its interval, one line an arm. Needs matplotlib (the extra `plot`)."""
    from matplotlib.figure import Figure

    from .plots import FAINT, INK, OURS

    rows = list(result["arms"])[::-1]
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    reference = next(row for row in rows if row["arm"] == REFERENCE)
    axes.axvspan(*(100 * end for end in reference["interval"]), color=FAINT, alpha=0.35, linewidth=0)
    for i, row in enumerate(rows):
        low, high = (100 * end for end in row["interval"])
        colour = INK if row["arm"] == REFERENCE else OURS
        axes.plot([low, high], [i, i], color=colour, linewidth=2)
        axes.plot(100 * row["success_rate"], i, "o", color=colour)
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axes.set_xlim(-2, 102)
    axes.set_xlabel("success, % of episodes, with 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _span(interval: Sequence[float], form: str = ".1f") -> str:
    return ", ".join(format(100 * end, form) for end in interval)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
