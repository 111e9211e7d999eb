"""W1.58-A8 arithmetic: ternary weights, int8 activations."""

from .linear import TernaryLinear

__all__ = ["TernaryLinear"]
