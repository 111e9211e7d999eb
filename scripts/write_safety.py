"""Put the findings of `bitvla prove` into docs/safety.md, with their pictures. They are kept in docs/proofs, the newest of each proof.

make prove; .venv/bin/python scripts/write_safety.py outputs/prove
Without a folder the page is only written anew, of what is kept.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from bitvla_ros.evaluation.proofs.report import Measured, sections
from bitvla_ros.nodes.prove.verb import PROOFS

DOCS = Path(__file__).resolve().parents[1] / "docs"
KEPT = DOCS / "proofs"


def keep(folder: Path) -> None:
    """Take over what `folder` has found."""
    found = [path for name in PROOFS if (path := folder / f"{name}.json").is_file()]
    if not found:
        raise SystemExit(f"{folder} keeps no findings: run `bitvla prove --output {folder}` first")
    KEPT.mkdir(exist_ok=True)
    for path in found:
        shutil.copyfile(path, KEPT / path.name)


def figures() -> str:
    """Markdown of all that is kept; the pictures that it shows are drawn anew."""
    measured = [Measured.load(path) for name in PROOFS if (path := KEPT / f"{name}.json").is_file()]
    lines = ["## Figures", "", *sections(measured, KEPT)]
    lines = [f"#{line}" if line.startswith("## ") and line != "## Figures" else line for line in lines]
    return re.sub(r"\]\(([\w-]+\.png)\)", rf"]({KEPT.name}/\1)", "\n".join(lines))


def main() -> None:
    page = DOCS / "safety.md"
    before, begin, rest = page.read_text(encoding="utf-8").partition("<!-- figures: ")
    comment, _, rest = rest.partition("\n")
    _, end, after = rest.partition("<!-- end of figures -->")
    for folder in sys.argv[1:]:
        keep(Path(folder))
    page.write_text(f"{before}{begin}{comment}\n\n{figures()}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
