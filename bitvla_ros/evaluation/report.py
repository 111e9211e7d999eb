"""An evaluation as one HTML page: rates with their intervals, success by task, and every episode's video, failures first."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .episodes import Attempt

PAGE = "index.html"

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2027; --soft: #5d6875; --line: #d8dde3; --card: #fff; --ground: #f4f6f8;
  --good: #1f9d5b; --bad: #c8453b; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e9edf2; --soft: #93a0af; --line: #38414d; --card: #1b2028; --ground: #11141a; --good: #40c07a; --bad: #ee6e62; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 76rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.75rem 0 .75rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.5rem; margin: 0; font-size: .9rem; }
dt, .soft { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
.table { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .9rem; text-align: left; border-bottom: 1px solid var(--line); }
th { font-weight: 500; color: var(--soft); }
tr:last-child td { border-bottom: 0; font-weight: 600; }
.number { text-align: right; white-space: nowrap; }
.bar { width: 14rem; }
svg { display: block; width: 14rem; height: 1rem; }
.episodes { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 1rem; }
.episode { display: flex; flex-direction: column; background: var(--card); border: 1px solid var(--line); border-top: 3px solid var(--bad);
  border-radius: 8px; overflow: hidden; color: inherit; text-decoration: none; }
a.episode:hover, a.episode:focus-visible { border-color: var(--ink); }
.success { border-top-color: var(--good); }
.episode img { display: block; width: 100%; }
.episode p { margin: 0; padding: .35rem .8rem 0; }
.episode .soft { font-size: .85rem; overflow-wrap: anywhere; }
.episode p:last-child { padding-bottom: .7rem; }
"""


def write_report(folder: Path, title: str, facts: Mapping[str, str], suites: Sequence[tuple[Mapping[str, Any], Sequence[Attempt]]]) -> Path:
    """Write `folder`/index.html in one step and return its path. The page needs nothing from elsewhere but the videos it links to.

    title: the policy. facts: what was evaluated and how, in words. suites: summary (episodes.py) and attempts of each.
    """
    body = [f"<h1>{escape(title)}</h1>", "<dl>"]
    body += [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()]
    body += ["</dl>", *(_suite(summary, attempts) for summary, attempts in suites)]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PAGE
    partial = folder / f".{PAGE}.{os.getpid()}"
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def _suite(summary: Mapping[str, Any], attempts: Sequence[Attempt]) -> str:
    rows = [_row(escape(task["instruction"]), task) for task in summary["by_task"].values()] + [_row("all tasks", summary)]
    latency = summary["latency_ms"]
    words = f"{summary['mean_steps']:.0f} steps an episode in the mean."
    if latency["p50"] is not None:
        words += f" Latency of a chunk: {latency['p50']:.0f} ms (median), {latency['p99']:.0f} ms (99 %)."
    parts = [
        f"<h2>{escape(summary['suite'])}</h2>",
        '<div class="table"><table><thead><tr><th>task</th><th class="number">successes</th><th class="number">success rate</th>'
        '<th class="number">95 % interval</th><th class="bar"></th></tr></thead>',
        "<tbody>" + "".join(rows) + "</tbody></table></div>",
        f'<p class="soft">{words}</p>',
    ]
    for name, chosen in (("Failures", [a for a in attempts if not a.success]), ("Successes", [a for a in attempts if a.success])):
        if chosen:
            parts += [f"<h3>{name}: {len(chosen)}</h3>", '<div class="episodes">', *map(_episode, chosen), "</div>"]
    return "\n".join(parts)


def _row(name: str, rate: Mapping[str, Any]) -> str:
    low, high = rate["interval"]
    return (
        f'<tr><td>{name}</td><td class="number">{rate["successes"]} of {rate["episodes"]}</td>'
        f'<td class="number">{rate["success_rate"]:.1%}</td><td class="number">{low:.1%} to {high:.1%}</td>'
        f'<td class="bar">{_interval(rate["success_rate"], low, high)}</td></tr>'
    )


def _interval(rate: float, low: float, high: float) -> str:
    """The interval as a bar on a scale from 0 to 1, the rate as a dot."""
    x, y, at = 4 + 192 * low, 4 + 192 * high, 4 + 192 * rate
    return (
        '<svg viewBox="0 0 200 14" aria-hidden="true">'
        '<rect x="4" y="6" width="192" height="2" rx="1" fill="var(--line)"/>'
        f'<rect x="{x:.1f}" y="4.5" width="{max(y - x, 1):.1f}" height="5" rx="2.5" fill="var(--good)" opacity=".45"/>'
        f'<circle cx="{at:.1f}" cy="7" r="4" fill="var(--good)"/></svg>'
    )


def _episode(attempt: Attempt) -> str:
    outcome = f"{attempt.outcome.replace('_', ' ')} after {attempt.steps} steps"
    inside = []
    if attempt.still:
        data = base64.b64encode(attempt.still).decode()
        inside.append(f'<img src="data:image/jpeg;base64,{data}" alt="the end of the episode" loading="lazy">')
    inside += [
        f"<p>{escape(attempt.instruction)}</p>",
        f'<p class="soft">task {attempt.task}, seed {attempt.seed}: {escape(outcome)}</p>',
    ]
    if not attempt.success:
        inside.append(f'<p class="soft">{escape(attempt.reason)}</p>')
    kind = "episode success" if attempt.success else "episode"
    if attempt.video is None:
        return f'<div class="{kind}">{"".join(inside)}</div>'
    return f'<a class="{kind}" href="{escape(attempt.video)}">{"".join(inside)}</a>'
