import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in the policy node: spinning threads starve the rest of a full machine


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden vectors and simulation assets beside the checkout."""
    path = Path(os.environ.get("BITVLA_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip("no golden vectors: the folder `shared` is not beside this checkout (set BITVLA_SHARED)")
    return path
