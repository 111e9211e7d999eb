"""LIBERO behind the environment contract. Runs with `make test-libero`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bitvla_ros.evaluation.rollout import rollout
from bitvla_ros.simulation import libero
from bitvla_ros.simulation.environment import Snapshot
from bitvla_ros.simulation.expert import make_expert
from bitvla_ros.simulation.libero import LiberoEnvironment

for module in ("libero", "robosuite", "bddl"):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"the optional extra LIBERO is not installed (no module {module})", allow_module_level=True)

pytestmark = pytest.mark.libero

REPOSITORY = Path(__file__).resolve().parents[1]
BOWL_NEXT_TO_PLATE = 8  # of libero_spatial


@pytest.fixture(scope="module")
def assets() -> str:
    shared = Path(os.environ.get("BITVLA_SHARED", REPOSITORY.parent / "shared"))
    folder = Path(os.environ.get(libero.ASSETS_VARIABLE, shared / "libero_assets" / "assets"))
    if not folder.is_dir():
        pytest.skip(f"no LIBERO assets in {folder} (set {libero.ASSETS_VARIABLE})")
    return str(folder)


@pytest.fixture(scope="module")
def blind(assets: str) -> Iterator[LiberoEnvironment]:
    """libero_object without cameras: physics only."""
    environment = LiberoEnvironment("libero_object", cameras=(), assets=assets)
    yield environment
    environment.close()


@pytest.fixture(scope="module")
def seeing(assets: str) -> Iterator[LiberoEnvironment]:
    environment = LiberoEnvironment("libero_spatial", image_size=128, assets=assets, reflections=False)
    yield environment
    environment.close()


def assert_equal(a: Snapshot, b: Snapshot) -> None:
    for name in ("position", "orientation", "gripper", "joint_positions"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name
    assert a.object_poses.keys() == b.object_poses.keys()
    for name, pose in a.object_poses.items():
        assert pose.tobytes() == b.object_poses[name].tobytes(), name
    assert a.images.keys() == b.images.keys()
    for role, image in a.images.items():
        assert np.array_equal(image, b.images[role]), role
    assert a.success == b.success


@pytest.mark.parametrize(("suite", "limit"), [("libero_spatial", 220), ("libero_object", 280), ("libero_goal", 300), ("libero_10", 520)])
def test_every_suite_has_ten_tasks_and_its_published_step_limit(assets: str, suite: str, limit: int) -> None:
    environment = LiberoEnvironment(suite, cameras=(), assets=assets)
    assert (len(set(environment.tasks)), environment.step_limit, environment.control_hz) == (10, limit, 20.0)


def test_equal_seeds_and_actions_give_equal_snapshots(blind: LiberoEnvironment, assets: str) -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 7)).astype(np.float32)

    def play(environment: LiberoEnvironment) -> list[Snapshot]:
        return [environment.reset(0, 7), *(environment.step(action) for action in actions)]

    first, again = play(blind), play(blind)
    fresh = LiberoEnvironment("libero_object", cameras=(), assets=assets)
    for a, b, c in zip(first, again, play(fresh), strict=True):
        assert_equal(a, b)
        assert_equal(a, c)
    fresh.close()
    assert not np.array_equal(first[0].position, first[-1].position)


def test_seed_selects_the_given_initial_state(blind: LiberoEnvironment) -> None:
    joints = [blind.reset(0, seed).joint_positions for seed in (0, 49)]
    assert not np.allclose(joints[0], joints[1], atol=1e-3)
    with pytest.raises(ValueError, match="0 to 49"):
        blind.reset(0, 50)
    with pytest.raises(ValueError, match="0 to 9"):
        blind.reset(10, 0)


def test_objects_have_come_to_rest_when_an_episode_begins(blind: LiberoEnvironment) -> None:
    start = blind.reset(0, 0)
    after = blind.step(np.array([0, 0, 0, 0, 0, 0, -1], np.float32))
    for name, pose in start.object_poses.items():
        assert np.linalg.norm(after.object_poses[name][:3] - pose[:3]) < 1e-3, name
    assert start.gripper[0] > 0.03 and start.gripper[1] < -0.03  # open


def test_orientation_is_on_the_branch_of_the_datasets(blind: LiberoEnvironment) -> None:
    x, y, z, w = blind.reset(0, 0).orientation  # the hand looks down: half a turn about x, stored as +x
    assert x > 0.99 and max(abs(y), abs(z), abs(w)) < 0.1


def test_action_moves_the_hand_along_its_axis(blind: LiberoEnvironment) -> None:
    start = blind.reset(0, 0)
    for _ in range(10):
        end = blind.step(np.array([0, 1, 0, 0, 0, 0, 1], np.float32))
    x, y, z = end.position - start.position
    assert 0.08 < y < 0.14 and abs(x) < 0.03 and abs(z) < 0.03  # as recorded in data/osc_response.json
    assert end.gripper[0] < start.gripper[0] / 2  # +1 closes


def test_a_hold_stops_a_turning_hand(blind: LiberoEnvironment) -> None:
    def angle(a: Snapshot, b: Snapshot) -> float:
        return 2 * float(np.arccos(min(1.0, abs(float(a.orientation @ b.orientation)))))

    blind.reset(0, 0)
    for _ in range(8):
        turning = blind.step(np.array([0, 0, 0, 0, 0, 1, -1], np.float32))
    hold = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)
    stopped = [blind.step(hold) for _ in range(10)]
    assert angle(turning, stopped[-1]) < 0.15  # it coasts; towards the goal of the last turn it would be 0.4 rad
    assert angle(stopped[-2], stopped[-1]) < 0.003


@pytest.mark.parametrize("action", [np.zeros(6, np.float32), np.array([0, 0, np.nan, 0, 0, 0, 1], np.float32)])
def test_malformed_action_is_refused(blind: LiberoEnvironment, action: np.ndarray) -> None:
    blind.reset(0, 0)
    with pytest.raises(ValueError, match="7 finite numbers"):
        blind.step(action)


def test_stepping_before_an_episode_is_refused(assets: str) -> None:
    with pytest.raises(RuntimeError, match="reset"):
        LiberoEnvironment("libero_goal", cameras=(), assets=assets).step(np.zeros(7, np.float32))


def test_wrong_names_are_refused(assets: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="libero_spatial"):
        LiberoEnvironment("libero_90", assets=assets)
    with pytest.raises(ValueError, match="wrist"):
        LiberoEnvironment("libero_object", cameras=("front",), assets=assets)
    with pytest.raises(FileNotFoundError, match=libero.ASSETS_VARIABLE):
        LiberoEnvironment("libero_object", assets=tmp_path)


def project(environment: LiberoEnvironment, point: np.ndarray) -> tuple[float, float]:
    """Column and row at which the scene camera sees a point of the world, by the pinhole model, in an upright, unmirrored picture."""
    sim, size = environment._env.sim, environment.image_size
    camera = sim.model.camera_name2id("agentview")
    x, y, z = sim.data.cam_xmat[camera].reshape(3, 3).T @ (point - sim.data.cam_xpos[camera])
    focal = size / 2 / np.tan(np.radians(sim.model.cam_fovy[camera]) / 2)
    return size / 2 - focal * x / z, size / 2 + focal * y / z


def test_pictures_stand_as_in_the_datasets(seeing: LiberoEnvironment) -> None:
    """Robosuite's raw frame is upside down; half a turn makes it upright and mirrored, which is how LIBERO's policies were trained."""
    snapshot = seeing.reset(BOWL_NEXT_TO_PLATE, 0)
    size = seeing.image_size
    for image in snapshot.images.values():
        assert image.dtype == np.uint8 and image.shape == (size, size, 3) and image.flags.c_contiguous
    scene = snapshot.images["scene"].astype(float)
    column, row = (round(v) for v in project(seeing, snapshot.object_poses["plate_1"][:3]))
    assert abs(column - size / 2) > 10 and abs(row - size / 2) > 10  # off the middle, or the test could not tell

    def patch(r: int, c: int) -> np.ndarray:
        return scene[r - 2 : r + 3, c - 2 : c + 3].mean((0, 1))

    def is_plate(colour: np.ndarray) -> bool:  # near white; the table is brown
        return bool(colour.min() > 150 and np.ptp(colour) < 25)

    assert is_plate(patch(row, size - 1 - column))
    assert not is_plate(patch(row, column))
    assert not is_plate(patch(size - 1 - row, size - 1 - column))


def test_a_seen_episode_repeats_byte_for_byte(seeing: LiberoEnvironment) -> None:
    action = np.array([0.5, 0.5, -0.5, 0, 0, 0.5, 1], np.float32)

    def play() -> list[Snapshot]:
        return [seeing.reset(BOWL_NEXT_TO_PLATE, 1), seeing.step(action), seeing.step(action)]

    first = play()
    for a, b in zip(first, play(), strict=True):
        assert_equal(a, b)
    assert not np.array_equal(first[0].images["wrist"], first[2].images["wrist"])


def test_expert_puts_the_soup_into_the_basket(blind: LiberoEnvironment) -> None:
    result = rollout(blind, make_expert(blind), 0, 0)
    assert result.success, result.reason
    assert 50 < result.steps < blind.step_limit


def test_expert_puts_a_bowl_onto_the_plate(assets: str) -> None:
    environment = LiberoEnvironment("libero_spatial", cameras=(), assets=assets)
    result = rollout(environment, make_expert(environment), 0, 0)
    environment.close()
    assert result.success, result.reason


def test_every_plan_of_the_expert_is_for_a_task_of_its_suite(assets: str) -> None:
    from bitvla_ros.simulation.libero_plans import PLANS

    for suite, plans in PLANS.items():
        assert set(plans) <= set(LiberoEnvironment(suite, cameras=(), assets=assets).tasks)


def test_initial_states_with_code_in_them_are_refused(tmp_path: Path) -> None:
    import pickle

    import torch

    torch.save(Path("not an array"), tmp_path / "a.pruned_init")
    with pytest.raises(pickle.UnpicklingError):
        libero._load_initial_states(tmp_path / "a.pruned_init")


def test_nothing_is_asked_and_nothing_is_left_in_the_home(assets: str, tmp_path: Path) -> None:
    program = (
        "from bitvla_ros.simulation.libero import LiberoEnvironment; import sys;"
        f"print(len(LiberoEnvironment('libero_goal', cameras=(), assets={assets!r}).tasks), file=sys.stderr)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "LIBERO_CONFIG_PATH"}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""  # stdout belongs to JSON
    assert not (tmp_path / ".libero").exists()
