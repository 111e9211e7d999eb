"""How the learning rate goes: up in a straight line, then down a cosine to 0."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """The share of the full learning rate with which step number `step`, of 0 ... steps - 1, is taken.

    The first of `warmup` steps has the share 1 / warmup, so that no step is lost. After the last step the rate would be 0.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
