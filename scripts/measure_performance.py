"""Every figure of docs/performance.md, as JSON, pictures and Markdown tables. About ten minutes on two cores; let nothing else run.

.venv/bin/python scripts/measure_performance.py FOLDER
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bitvla_ros.ternary.library import isas

PEERS = ("ceiling", "fp32", "bf16", "int_mm", "fake_quant")
threads = len(os.sched_getaffinity(0))


def bench(name: str, *options: str, isa: str | None = None, plot: bool = False) -> dict[str, Any]:
    """`bitvla bench` with these options; its result also goes to FOLDER/name.json, and drawn to FOLDER/name.png."""
    command = [sys.executable, "-m", "bitvla_ros.cli", "bench", "--json", *options]
    command += ["--plot", str(folder / f"{name}.png")] if plot else []
    print("$", f"BITVLA_ISA={isa}" if isa else "", "bitvla bench", *command[4:], file=sys.stderr)
    environment = os.environ | ({"BITVLA_ISA": isa} if isa else {})
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    (folder / f"{name}.json").write_text(done.stdout)
    return json.loads(done.stdout)


def table(*rows: tuple[Any, ...]) -> None:
    """The first row is the heading."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    text = "\n".join(lines) + "\n"
    print(text)
    with (folder / "tables.md").open("a") as file:
        file.write(text + "\n")


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def kernels(result: dict[str, Any]) -> list[tuple[Any, ...]]:
    rows = [
        (f"{row['m']} x {row['k']} x {row['n']}", row["count"], f"{row['gmacs']:.1f}", *(ratio(row[f"vs_{peer}"]) for peer in PEERS))
        for row in result["shapes"]
    ]
    return [*rows, ("**chunk**", 366, f"**{result['weighted_gmacs']:.1f}**", *(ratio(result[f"weighted_vs_{peer}"]) for peer in PEERS))]


def stamp(result: dict[str, Any]) -> None:
    exact = "" if "shapes" not in result else "; exact: " + ("all" if all(row["exact"] for row in result["shapes"]) else "NOT ALL")
    text = f"{result['machine']}; {result['date']}; idle: {result['idle']} (others took {result['others_share']:.1%}){exact}"
    print(text + "\n")
    with (folder / "tables.md").open("a") as file:
        file.write(text + "\n\n")


folder = Path(sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
(folder / "tables.md").unlink(missing_ok=True)

by_isa = [("instructions", "threads", "GMAC/s", "ceiling", *(f"x {peer}" for peer in PEERS))]
for isa in isas():
    for count in (1, threads) if isa == isas()[0] else (1,):
        result = bench(f"kernels-{isa}-{count}", "--kernels", "--backend", "cpu", "--threads", str(count), isa=isa, plot=isa != "scalar")
        stamp(result)
        table(("M x K x N", "layers", "GMAC/s", *(f"x {peer}" for peer in PEERS)), *kernels(result))
        by_isa += [(isa, count, *(f"{result[key]:.1f}" for key in ("weighted_gmacs", "ceiling_gmacs")), *kernels(result)[-1][3:])]
table(*by_isa)

chunks = [("preset", "threads", "p50, ms", "p99, ms", "preprocess", "vision", "language", "head", "rest")]
memory = [("preset", "ternary, MB", "other, MB", "of both in memory, MB", "anonymous, MB", "peak, MB")]
for preset in ("nano", "3b"):
    for count in (1, threads):
        result = bench(f"chunk-{preset}-{count}", "--preset", preset, "--backend", "cpu", "--threads", str(count), plot=True)
        stamp(result)
        chunks += [(preset, count, *result["latency_ms"].values(), *result["breakdown_ms"].values())]
    weights, rss = result["weights_bytes"].values(), result["rss_bytes"]["anonymous"]
    memory += [(preset, *(f"{value / 1e6:.1f}" for value in (*weights, rss, result["peak_rss_bytes"])))]
table(*chunks)
table(*memory)
