"""Quaternions, rotation vectors and matrices agree with each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitvla_ros.control.rotation import matrix, turn_between, turned

NONE = np.array([0.0, 0.0, 0.0, 1.0])

components = st.floats(-1.0, 1.0)
directions = st.tuples(components, components, components).map(np.array).filter(lambda v: np.linalg.norm(v) > 0.01)
vectors = st.builds(lambda direction, angle: direction * (angle / np.linalg.norm(direction)), directions, st.floats(0.0, 3.1))
quaternions = vectors.map(lambda vector: turned(NONE, vector))


@given(quaternions, vectors)
def test_the_turn_between_two_orientations_is_the_one_that_was_made(quaternion, vector):
    after = turned(quaternion, vector)
    assert np.linalg.norm(after) == pytest.approx(1.0)
    assert turn_between(quaternion, after) == pytest.approx(vector, abs=1e-7)
    assert turn_between(quaternion, -after) == pytest.approx(vector, abs=1e-7)


@given(quaternions, vectors)
def test_a_turn_is_about_the_axes_of_the_world(quaternion, vector):
    assert matrix(turned(quaternion, vector)) == pytest.approx(matrix(turned(NONE, vector)) @ matrix(quaternion), abs=1e-9)


@pytest.mark.parametrize(("axis", "before", "after"), [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_a_positive_quarter_turn_is_right_handed(axis, before, after):
    rotation = matrix(turned(NONE, np.pi / 2 * np.eye(3)[axis]))
    assert rotation[:, before] == pytest.approx(np.eye(3)[after], abs=1e-12)
