"""The four LIBERO suites (Liu et al. 2023) behind the Environment contract, through hf-libero and robosuite 1.4. Optional.

What the published evaluations do is done here: the given initial states, env.seed(0), ten settling steps with an open gripper, the
step limits of the suites, frames turned by 180 degrees once. An episode's seed is the index of its initial state.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .environment import Snapshot

STEP_LIMITS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520}  # without the settling steps
CAMERAS = {"scene": "agentview", "wrist": "robot0_eye_in_hand"}  # our role -> robosuite's camera
SETTLING_STEPS = 10  # objects of an initial state fall a little when the simulation begins
SETTLING_ACTION = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
ASSETS_VARIABLE = "BITVLA_LIBERO_ASSETS"

INSTALL_HINT = (
    "LIBERO is an optional extra. Install it with\n"
    "  pip install mujoco==3.8.1 numba scipy opencv-python-headless pyyaml easydict cloudpickle gymnasium"
    " matplotlib tqdm termcolor future\n"
    "  pip install --no-deps robosuite==1.4.0 bddl==1.0.1 hf-libero==0.1.4"
)
GL_HINT = (
    "robosuite found no OpenGL to render with. On Debian or Ubuntu:\n"
    "  apt-get install --no-install-recommends libosmesa6 libegl1 libegl-mesa0 libgl1-mesa-dri libgl1 libglib2.0-0\n"
    "and set MUJOCO_GL to egl (GPU) or osmesa (software) before the program starts"
)


class LiberoEnvironment:
    """One LIBERO suite. `Environment` in environment.py has the contract.

    suite: a key of STEP_LIMITS. cameras: roles to render, of CAMERAS; with none no renderer is made, and a step takes about a tenth
    of the time. image_size: H = W of a frame. assets: folder with LIBERO's meshes and textures; by default $BITVLA_LIBERO_ASSETS,
    else what hf-libero finds or downloads itself. reflections: the table of some scenes mirrors, which nearly doubles the cost of a
    frame in software; the datasets have it on.
    Raises ImportError where LIBERO or OpenGL is missing, ValueError for an unknown suite or camera, FileNotFoundError without assets.

    The OpenGL context belongs to the thread that calls `reset`: call `step` from the same one.
    Poses are in robosuite's world; the robot's base stands at another place in it for each kind of scene.
    """

    control_hz = 20.0
    frame = "world"
    joint_names = tuple(f"panda_joint{i}" for i in range(1, 8))
    gripper_joint_names = ("panda_finger_joint1", "panda_finger_joint2")

    def __init__(
        self,
        suite: str,
        *,
        cameras: Sequence[str] = ("scene", "wrist"),
        image_size: int = 256,
        assets: str | os.PathLike[str] | None = None,
        reflections: bool = True,
    ) -> None:
        if suite not in STEP_LIMITS:
            raise ValueError(f"no LIBERO suite {suite!r}: expected one of {', '.join(STEP_LIMITS)}")
        unknown = [camera for camera in cameras if camera not in CAMERAS]
        if unknown:
            raise ValueError(f"LIBERO has no camera {unknown[0]!r}: expected some of {', '.join(CAMERAS)}")
        if image_size < 1:
            raise ValueError(f"image_size is {image_size}: expected at least 1 pixel")
        self.suite = suite
        self.step_limit = STEP_LIMITS[suite]
        self.cameras = tuple(cameras)
        self.image_size = image_size
        self.reflections = reflections
        self._assets = assets if assets is not None else os.environ.get(ASSETS_VARIABLE)
        self._libero = _import_libero()
        self._use_assets()
        with _quiet():
            from libero.libero import benchmark

            self._benchmark = benchmark.get_benchmark(suite)()
        self.tasks = tuple(str(task.language) for task in self._benchmark.tasks)
        self._env: Any = None
        self._task = -1
        self._initial_states: NDArray[np.float64] = np.empty((0, 0))

    def reset(self, task: int, seed: int) -> Snapshot:
        """Begin an episode from initial state number `seed`. The first reset of a task builds its scene (seconds).
        Raises ValueError for a task that the suite lacks or an initial state that the task lacks."""
        if not 0 <= task < len(self.tasks):
            raise ValueError(f"{self.suite} has no task {task}: expected 0 to {len(self.tasks) - 1}")
        if task != self._task:
            self._build(task)
        if not 0 <= seed < len(self._initial_states):
            raise ValueError(
                f"{self.suite} task {task} has no initial state {seed}: the seed is its index, "
                f"expected 0 to {len(self._initial_states) - 1}"
            )
        with _quiet():
            self._env.seed(0)  # places the fixtures, which are no part of the initial state
            self._env.reset()
            self._env.set_init_state(self._initial_states[seed])
            for _ in range(SETTLING_STEPS):
                observation, *_ = self._env.step(SETTLING_ACTION)
        if self.cameras and not self.reflections:
            import mujoco

            self._env.sim._render_context_offscreen.scn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        return self._snapshot(observation)

    def step(self, action: NDArray[np.float32]) -> Snapshot:
        """Play one control step (25 physics steps of 2 ms). action: float32 [7], a row of an ActionChunk."""
        if self._env is None:
            raise RuntimeError("no episode has begun: call reset(task, seed) first")
        action = np.asarray(action, np.float64)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ValueError(f"action is {action}: expected 7 finite numbers")
        if not action[:6].any():
            # A hold. Where the rotation is exactly zero, OSC_POSE keeps its last orientation goal and goes on turning towards it.
            action = np.array([0, 0, 0, 0, 0, 1e-9, action[6]])
        observation, *_ = self._env.step(action)
        return self._snapshot(observation)

    def close(self) -> None:
        """Free the scene and its renderer."""
        if self._env is not None:
            self._env.close()
        self._env, self._task = None, -1

    def _build(self, task: int) -> None:
        self.close()
        from libero.libero.envs.env_wrapper import ControlEnv

        self._use_assets()
        given = self._benchmark.tasks[task]
        self._initial_states = _load_initial_states(self._root / "init_files" / given.problem_folder / given.init_states_file)
        with _quiet(), _explain_missing_gl():
            # Frames are rendered in _snapshot and not as robosuite's observations, which would render through settling as well.
            self._env = ControlEnv(
                str(self._root / "bddl_files" / given.problem_folder / given.bddl_file),
                use_camera_obs=False,
                has_offscreen_renderer=bool(self.cameras),
                ignore_done=True,
                control_freq=int(self.control_hz),
            )
        self._task = task

    def _snapshot(self, observation: dict[str, NDArray[np.float64]]) -> Snapshot:
        sim = self._env.sim
        size = self.image_size
        return Snapshot(
            images={
                role: np.ascontiguousarray(sim.render(camera_name=CAMERAS[role], width=size, height=size)[::-1, ::-1])
                for role in self.cameras
            },
            position=np.array(observation["robot0_eef_pos"], np.float64),
            orientation=np.array(observation["robot0_eef_quat"], np.float64),
            gripper=np.array(observation["robot0_gripper_qpos"], np.float64),
            joint_positions=np.array(observation["robot0_joint_pos"], np.float64),
            object_poses=self._object_poses(),
            success=bool(self._env.check_success()),
        )

    def _object_poses(self) -> dict[str, NDArray[np.float64]]:
        """Movable objects, fixtures (cabinet, stove) and the regions that goals speak of, by their names in the BDDL file."""
        sim, domain = self._env.sim, self._env.env
        poses = {}
        for name, state in domain.object_states_dict.items():
            if state.object_state_type == "site":
                poses[name] = np.concatenate([sim.data.get_site_xpos(name), _quaternion(sim.data.get_site_xmat(name))])
            else:
                body = domain.obj_body_id[name]
                poses[name] = np.concatenate([sim.data.body_xpos[body], np.roll(sim.data.body_xquat[body], -1)])  # wxyz -> xyzw
        return poses

    @property
    def _root(self) -> Path:
        return Path(self._libero.__file__).parent

    def _use_assets(self) -> None:
        """Say where LIBERO's assets are: hf-libero ignores the `assets:` key of its own config.yaml."""
        if self._assets is not None:
            folder = Path(self._assets)
            if not (folder / "scenes").is_dir():
                raise FileNotFoundError(
                    f"no LIBERO assets in {folder}: expected a folder with scenes/, textures/ and so on (set {ASSETS_VARIABLE})"
                )
            self._libero._assets_path_cache = str(folder)
            return
        with _quiet():
            found = self._libero.get_assets_path()
        if not Path(found).is_dir():
            raise FileNotFoundError(
                f"hf-libero could not download LIBERO's assets: connect to the network once, or set {ASSETS_VARIABLE} "
                "to the folder libero/libero/assets of a LIBERO checkout"
            )


def _import_libero() -> Any:
    """The module libero.libero. It asks on stdin where it finds no config.yaml, so one is written first: in $LIBERO_CONFIG_PATH
    if that is set, else in a folder that lives as long as this process."""
    if "libero.libero" in sys.modules:
        return sys.modules["libero.libero"]
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"no module named libero. {INSTALL_HINT}")
    root = Path(next(iter(spec.submodule_search_locations))) / "libero"
    before = os.environ.get("LIBERO_CONFIG_PATH")
    folder = Path(before or _config_folder())
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.yaml").exists():
        paths = {
            "benchmark_root": root,
            "bddl_files": root / "bddl_files",
            "init_states": root / "init_files",
            "datasets": root.parent / "datasets",
            "assets": root / "assets",
        }
        scratch = folder / f"config.yaml.{os.getpid()}"
        scratch.write_text("".join(f"{key}: '{path}'\n" for key, path in paths.items()))
        scratch.replace(folder / "config.yaml")
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)
    try:
        with _quiet(), _explain_missing_gl():
            import libero.libero
            import libero.libero.envs.env_wrapper  # noqa: F401  (brings robosuite and, with it, OpenGL)
    except ImportError as error:
        if error.msg == GL_HINT:
            raise
        raise ImportError(f"{error}. {INSTALL_HINT}") from error
    finally:
        if before is None:
            del os.environ["LIBERO_CONFIG_PATH"]
    return sys.modules["libero.libero"]


_temporary_config: tempfile.TemporaryDirectory[str] | None = None


def _config_folder() -> str:
    global _temporary_config
    if _temporary_config is None:
        _temporary_config = tempfile.TemporaryDirectory(prefix="libero-config-")
    return _temporary_config.name


def _load_initial_states(path: Path) -> NDArray[np.float64]:
    """float64 [n, 1 + nq + nv], flattened MuJoCo states. The files are pickles within torch's format; only the three harmless numpy
    names that make an array are let through, so nothing in them can run."""
    import torch

    reconstruct = np.zeros(1).__reduce__()[0]  # numpy 1 and 2 keep it in different modules
    allowed: list[Any] = [(reconstruct, "numpy.core.multiarray._reconstruct"), np.ndarray, np.dtype, type(np.dtype(np.float64))]
    with torch.serialization.safe_globals(allowed):
        return np.asarray(torch.load(path, weights_only=True), np.float64)


def _quaternion(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    import mujoco

    wxyz = np.empty(4)
    mujoco.mju_mat2Quat(wxyz, np.asarray(matrix, np.float64).ravel())
    return np.roll(wxyz, -1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """LIBERO prints to stdout, which belongs to JSON; send that to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def _explain_missing_gl() -> Iterator[None]:
    """PyOpenGL reports a missing library as an AttributeError of None."""
    try:
        yield
    except AttributeError as error:
        if "NoneType" in str(error) and "gl" in str(error).lower():
            raise ImportError(GL_HINT) from error
        raise
