"""Random events between setpoints, checked by what goes out: a short run, and an oracle that finds what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from bitvla_ros.control.session import Session
from bitvla_ros.control.setpoint_checks import SetpointChecks
from bitvla_ros.evaluation.proofs.session_fuzz import prove_session

EVENTS = 20_000


def found(events: int, seed: int = 1) -> tuple[str, ...]:
    return prove_session(events, seed, lambda count: None).examples


def test_nothing_that_happens_between_two_setpoints_breaks_a_limit() -> None:
    assert found(EVENTS) == ()


def drop_the_ramp(self: Session, *arguments: object, **words: object) -> int:
    epoch = begin(self, *arguments, **words)
    self._holds_left = 0
    return epoch


def trust_one_pose(self: Session, now, arm, steady):
    self._poses._samples, self._poses._span = 3, 0
    return begin_motion(self, now, arm, steady)


def leave_the_box(self: SetpointChecks, arm, steady, epoch):
    self._low, self._high = np.full(3, -9.0), np.full(3, 9.0)
    return place(self, arm, steady, epoch)


begin, begin_motion, place = Session.begin, Session._begin_motion, SetpointChecks.place


@pytest.mark.parametrize(
    ("kind", "name", "wrong"),
    [
        (Session, "begin", drop_the_ramp),
        (Session, "_begin_motion", trust_one_pose),
        (SetpointChecks, "place", leave_the_box),
        (SetpointChecks, "settling", lambda self, steady: False),
        (SetpointChecks, "stop", lambda self, steady, epoch: None),
    ],
)
def test_the_oracle_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch, kind: type, name: str, wrong: object) -> None:
    monkeypatch.setattr(kind, name, wrong)
    assert any(found(5_000, seed) for seed in range(40))
