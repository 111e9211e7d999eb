"""Where the package's files that are no modules are: config/, msg/ and others."""

from __future__ import annotations

import sys
from pathlib import Path


def share_folder(name: str) -> Path:
    """A folder of the source tree, or of share/bitvla_ros where the package is installed. Raises FileNotFoundError."""
    here = Path(__file__).resolve()
    places = [here.parents[1] / name, *(root / "share/bitvla_ros" / name for root in (Path(sys.prefix), *here.parents))]
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise FileNotFoundError(f"{name}/ of bitvla_ros is in none of {', '.join(map(str, places[:2]))}: install the package again")
    return found
