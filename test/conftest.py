import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in the policy node: spinning threads starve the rest of a full machine

settings.register_profile("suite", deadline=None)  # how long an example takes says nothing on a full machine
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Among workers a file's tests stay together, as its fixtures are dear. All graphs are one group: one at a time, as they need their
    share of the processors, beside tests that compute."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group("graphs" if item.get_closest_marker("ros") else item.path.name))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden vectors and simulation assets beside the checkout."""
    path = Path(os.environ.get("BITVLA_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not path.is_dir():
        pytest.skip("no golden vectors: the folder `shared` is not beside this checkout (set BITVLA_SHARED)")
    return path


@pytest.fixture(scope="module")
def no_curves() -> Iterator[None]:
    """A picture of a training run costs more than a run of a few steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bitvla_ros.training.trainer.draw_curves", lambda log, picture: None)
        yield
