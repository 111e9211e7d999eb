"""The Triton backend on a machine with no GPU: its kernels in Triton's interpreter, and what it says where it cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bitvla_ros.ternary import backends, triton_backend
from bitvla_ros.ternary.pack import PackedWeight, pack

CPU = torch.device("cpu")


def test_kernels_equal_the_reference_in_the_interpreter():
    """Triton decides when it is imported whether it interprets: hence a process of its own."""
    pytest.importorskip("triton", reason="Triton is not installed (extra `triton`)")
    file = Path(__file__).with_name("triton_interpreted.py")
    options = ["-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning"]  # numpy's, of the infinities that some tests want
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(file)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=file.parents[1],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


def test_without_a_gpu_the_backend_says_so_and_cpu_serves():
    pytest.importorskip("triton", reason="Triton is not installed (extra `triton`)")
    with pytest.raises(backends.BackendError, match=r"CUDA GPU, not on cpu: ask for the device cuda"):
        backends.choose("triton", "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(backends.BackendError, match=r"torch sees no CUDA GPU"):
            backends.choose("triton", "cuda")
        assert backends.choose("auto", "cuda").name in ("cpu", "reference")


def test_cpu_tensors_are_refused_outside_the_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed (extra `triton`)")
    backend = triton_backend.BACKEND
    with pytest.raises(ValueError, match=r"on a CUDA GPU"):
        backend.quantize(torch.ones(2, 16))
    (weight,) = backend.prepare([PackedWeight(pack(torch.ones(4, 16, dtype=torch.int8)), torch.tensor(1.0), 4, 16)], CPU)
    x = triton_backend.QuantizedActivation(torch.ones(2, 16, dtype=torch.int8), torch.ones(2), torch.full((2,), 16, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"on a CUDA GPU"):
        backend.linear(x, [weight], [None], torch.float32)


def test_without_triton_the_backend_imports_and_names_the_remedy():
    """In a process of its own, where importing triton fails."""
    code = """if True:
        import sys
        sys.modules["triton"] = None
        import torch
        from bitvla_ros.ternary import backends, triton_backend
        print(triton_backend.BACKEND.problem(torch.device("cuda")))
        try:
            backends.choose("triton", "cuda")
        except backends.BackendError as error:
            print(error)
    """
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(said) == 2 and all("pip install triton" in line for line in said)
