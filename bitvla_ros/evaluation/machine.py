"""What a measurement must say about the machine: its processor, how busy others kept it, and what really lies in memory."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

IDLE = 0.05  # share of the processors' time that others may take while a machine still counts as idle


def machine() -> str:
    """Architecture and processor in words."""
    return f"{platform.machine()}, {_processor()}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
    except OSError:
        fields = {}
    known = {name.strip(): value.strip() for name, value in fields.items()}
    if "model name" not in known:
        return platform.processor() or "unknown processor"
    return f"{known['model name']} (family {known.get('cpu family', '?')}, model {known.get('model', '?')}), {os.cpu_count()} processors"


def default_device(backend: str) -> str:
    """Where a backend of that name is to run: a GPU for triton, and for auto where there is one."""
    import torch

    return "cuda" if backend == "triton" or (backend == "auto" and torch.cuda.is_available()) else "cpu"


class OtherLoad:
    """How much of the processors' time others took since this object was made.

    Counted are the processors that this process may run on: everything that /proc/stat calls busy, time stolen by a hypervisor
    included, less what this process and its finished children used.
    """

    def __init__(self) -> None:
        self._began = _usage()

    def share(self) -> float | None:
        """0 (nobody else) to 1 (all of the processors' time). None where the system does not tell."""
        now = _usage()
        if self._began is None or now is None:
            return None
        busy, own, wall = (after - before for after, before in zip(now, self._began, strict=True))
        return max(0.0, busy - own) / max(wall * len(os.sched_getaffinity(0)), 1e-9)

    def report(self) -> dict[str, float | bool | None]:
        """{"idle": others took less than a twentieth, "others_share"}; both None where the system does not tell."""
        share = self.share()
        return {"idle": None if share is None else share < IDLE, "others_share": None if share is None else round(share, 4)}


def _usage() -> tuple[float, float, float] | None:
    """Busy seconds of our processors, this process's own CPU seconds, wall seconds."""
    try:
        mine = {f"cpu{index}" for index in os.sched_getaffinity(0)}
        with open("/proc/stat") as file:
            rows = [line.split() for line in file if line.split()[:1] and line.split()[0] in mine]
    except (OSError, AttributeError):
        return None
    # user nice system idle iowait irq softirq steal (guest time is part of user)
    ticks = sum(int(row[i]) for row in rows for i in (1, 2, 3, 6, 7, 8))
    used = os.times()
    own = used.user + used.system + used.children_user + used.children_system
    return ticks / os.sysconf("SC_CLK_TCK"), own, time.perf_counter()


def resident_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors that lie in this process's memory now, or on a GPU. A memory-mapped tensor counts as far as it was read.

    Where the kernel does not say what is resident, everything counts.
    """
    page = os.sysconf("SC_PAGESIZE")
    total = 0
    for tensor in tensors:
        size = tensor.nbytes
        if tensor.device.type != "cpu" or not size:
            total += size
            continue
        begin, end = tensor.data_ptr(), tensor.data_ptr() + size
        first, last = begin // page, -(-end // page)
        try:
            with open("/proc/self/pagemap", "rb", buffering=0) as file:
                entries = np.frombuffer(os.pread(file.fileno(), 8 * (last - first), 8 * first), dtype=np.uint64)
        except OSError:
            entries = np.empty(0, np.uint64)
        if len(entries) != last - first:
            total += size
            continue
        edges = np.arange(first, last + 1) * page
        covered = np.minimum(edges[1:], end) - np.maximum(edges[:-1], begin)
        total += int(covered[entries >> np.uint64(63) == 1].sum())
    return total


def memory_now() -> dict[str, int]:
    """Resident bytes of this process: "anonymous" (its own) and "file" (mapped files, which the system may drop and read again)."""
    try:
        with open("/proc/self/status") as file:
            fields = dict(line.split(":", 1) for line in file)
    except OSError:
        return {}
    return {name: 1024 * int(fields[key].split()[0]) for name, key in (("anonymous", "RssAnon"), ("file", "RssFile")) if key in fields}
