"""Quaternions and rotation vectors agree with each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitvla_ros.control.rotation import between, from_vector, inverse, matrix, multiply, to_vector, turned

components = st.floats(-1.0, 1.0)
axes = (
    st.tuples(components, components, components)
    .map(np.array)
    .filter(lambda v: np.linalg.norm(v) > 0.01)
    .map(lambda v: v / np.linalg.norm(v))
)
vectors = st.builds(lambda axis, angle: axis * angle, axes, st.floats(0.0, 3.1))
quaternions = vectors.map(from_vector)


@given(vectors)
def test_a_vector_comes_back(vector):
    assert to_vector(from_vector(vector)) == pytest.approx(vector, abs=1e-9)
    assert to_vector(-from_vector(vector)) == pytest.approx(vector, abs=1e-9)


@given(quaternions, vectors)
def test_between_is_what_turned(quaternion, vector):
    after = turned(quaternion, vector)
    assert np.linalg.norm(after) == pytest.approx(1.0)
    assert between(quaternion, after) == pytest.approx(vector, abs=1e-7)
    assert between(quaternion, -after) == pytest.approx(vector, abs=1e-7)


@given(quaternions, quaternions)
def test_products_are_those_of_matrices(first, second):
    assert matrix(multiply(first, second)) == pytest.approx(matrix(first) @ matrix(second), abs=1e-9)
    assert multiply(first, inverse(first)) == pytest.approx([0, 0, 0, 1], abs=1e-9)


@pytest.mark.parametrize(("axis", "before", "after"), [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_a_positive_quarter_turn_is_right_handed(axis, before, after):
    rotation = matrix(from_vector(np.pi / 2 * np.eye(3)[axis]))
    assert rotation[:, before] == pytest.approx(np.eye(3)[after], abs=1e-12)
