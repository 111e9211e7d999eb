"""Put the findings of `bitvla prove` into docs/safety.md, with their pictures.

make prove; .venv/bin/python scripts/write_safety.py outputs/prove
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from bitvla_ros.evaluation.proofs.report import Measured, sections
from bitvla_ros.nodes.prove.verb import PROOFS

DOCS = Path(__file__).resolve().parents[1] / "docs"
PICTURES = "proofs"


def figures(folder: Path, pictures: Path) -> str:
    """Markdown of what `folder` keeps; the pictures go to `pictures`, beside the page."""
    measured = [Measured.load(path) for name in PROOFS if (path := folder / f"{name}.json").is_file()]
    if not measured:
        raise SystemExit(f"{folder} keeps no findings: run `bitvla prove --output {folder}` first")
    pictures.mkdir(exist_ok=True)
    lines = ["## Figures", "", *sections(measured, pictures)]
    lines = [f"#{line}" if line.startswith("## ") and line != "## Figures" else line for line in lines]
    return re.sub(r"\]\(([\w-]+\.png)\)", rf"]({pictures.name}/\1)", "\n".join(lines))


def main() -> None:
    page = DOCS / "safety.md"
    before, begin, rest = page.read_text(encoding="utf-8").partition("<!-- figures: ")
    comment, _, rest = rest.partition("\n")
    _, end, after = rest.partition("<!-- end of figures -->")
    text = figures(Path(sys.argv[1]), DOCS / PICTURES)
    page.write_text(f"{before}{begin}{comment}\n\n{text}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
