"""Camera pictures from MuJoCo without a display."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray


class RenderingError(RuntimeError):
    """No OpenGL context could be made."""


def _context(size: int) -> Any:
    """An offscreen GL context, current in the calling thread: the backend that MUJOCO_GL names, else EGL, else OSMesa."""
    with contextlib.suppress(ImportError):
        # Mesa's software renderer and Triton, which torch loads when it likes, each bring an LLVM; where Mesa's is first, Triton's crashes
        importlib.import_module("triton")
    wanted = os.environ.get("MUJOCO_GL", "").lower()
    backends = [wanted] if wanted in ("egl", "osmesa", "glfw") else ["egl", "osmesa"]
    failures = []
    for backend in backends:
        try:
            context = importlib.import_module(f"mujoco.{backend}").GLContext(size, size)
            context.make_current()
            return context
        except Exception as error:  # each binding raises types of its own: AttributeError for a library that is missing, GLError, ...
            failures.append(f"{backend}: {type(error).__name__}: {error}")
    raise RenderingError(
        f"no OpenGL context for rendering ({'; '.join(failures)}). "
        "Install one backend: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri, or libosmesa6 with MUJOCO_GL=osmesa."
    )


class Renderer:
    """Square pictures of named cameras. Bound to the thread that makes it: make, use and close it in one thread.

    Raises RenderingError where no OpenGL context can be made, and for use in another thread."""

    def __init__(self, model: mujoco.MjModel, cameras: Sequence[str], size: int, shadows: Mapping[str, float] | None = None) -> None:
        """size: edge, pixels. shadows: body name -> radius (m) of a soft dark disc on the table (z = 0) below it, which costs
        next to nothing where real shadows cost more than the rest of the picture."""
        self._context = _context(size)
        self._thread = threading.get_ident()
        atexit.register(self.close)  # a context that is freed after its library is gone complains
        self._model = model
        self._scene = mujoco.MjvScene(model, 400)
        self._options = mujoco.MjvOption()
        self._gl = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._gl)
        self._shadows = [(model.body(name).id, radius) for name, radius in (shadows or {}).items()]
        self._rectangle = mujoco.MjrRect(0, 0, size, size)
        self._buffer = np.empty((size, size, 3), np.uint8)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
        self._cameras: dict[str, mujoco.MjvCamera] = {}
        for name in cameras:
            camera = mujoco.MjvCamera()
            camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            camera.fixedcamid = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
            self._cameras[name] = camera

    def render(self, data: mujoco.MjData) -> Mapping[str, NDArray[np.uint8]]:
        """Camera name -> uint8 [size, size, 3], RGB, upright; each a new array."""
        if self._context is None or threading.get_ident() != self._thread:
            raise RenderingError("an environment renders only until it is closed, and only in the thread that made it")
        self._context.make_current()
        images = {}
        for name, camera in self._cameras.items():
            mujoco.mjv_updateScene(self._model, data, self._options, None, camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene)
            self._add_shadows(data)
            mujoco.mjr_render(self._rectangle, self._scene, self._gl)
            mujoco.mjr_readPixels(self._buffer, None, self._rectangle, self._gl)
            images[name] = self._buffer[::-1].copy()  # OpenGL's first row is the lowest
        return images

    def _add_shadows(self, data: mujoco.MjData) -> None:
        for body, radius in self._shadows:
            x, y, height = data.xpos[body]
            if height < 0.0:
                continue
            strength = 0.45 * np.exp(-height / 0.15)
            for scale, share in ((1.3, 0.15), (1.2, 0.2), (1.1, 0.25), (1.0, 0.3)):
                spread = scale * radius * (1.0 + height)
                geom = self._scene.geoms[self._scene.ngeom]
                mujoco.mjv_initGeom(
                    geom,
                    mujoco.mjtGeom.mjGEOM_CYLINDER,
                    np.array([spread, 2e-4, 0.0]),
                    np.array([x - 0.3 * height, y - 0.25 * height, 5e-4 + 2e-4 * scale]),
                    np.eye(3).ravel(),
                    np.array([0.05, 0.04, 0.03, share * strength], np.float32),
                )
                # mjv_initGeom leaves these as memory was, and the order in which transparent things are drawn depends on them.
                geom.category, geom.objtype = mujoco.mjtCatBit.mjCAT_DYNAMIC, mujoco.mjtObj.mjOBJ_UNKNOWN
                geom.objid = geom.segid = -1
                geom.camdist = 0.0
                self._scene.ngeom += 1

    def close(self) -> None:
        if self._context is not None:
            atexit.unregister(self.close)
            self._context.make_current()
            self._gl.free()
            self._context.free()
            self._context = None
