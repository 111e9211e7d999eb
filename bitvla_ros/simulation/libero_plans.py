"""What the expert does in LIBERO: instruction -> plan, for the tasks that one pick and place solves."""

from __future__ import annotations

from collections.abc import Mapping

from .expert import ExpertError, PickAndPlace

PLANS: Mapping[str, Mapping[str, PickAndPlace]] = {}  # suite -> instruction -> plan


def plans(suite: str) -> Mapping[str, PickAndPlace]:
    """Instruction -> plan of one suite. Raises ExpertError for a suite without any."""
    if suite not in PLANS:
        raise ExpertError(f"the expert has no plans for {suite!r}: it has some for {', '.join(PLANS) or 'no LIBERO suite'}")
    return PLANS[suite]
