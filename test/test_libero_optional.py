"""What a user without the LIBERO extra sees."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from bitvla_ros.simulation.libero import LiberoEnvironment


def test_missing_libero_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "libero.libero", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install --no-deps robosuite==1\.4\.0 bddl==1\.0\.1 hf-libero==0\.1\.4"):
        LiberoEnvironment("libero_object")


def test_unknown_suite_is_refused_before_anything_is_imported() -> None:
    with pytest.raises(ValueError, match="libero_object"):
        LiberoEnvironment("libero_90")
