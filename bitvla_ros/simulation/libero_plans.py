"""What the expert does in LIBERO: instruction -> plan, for the tasks that one pick and place from above solves."""

from __future__ import annotations

from collections.abc import Mapping

from .plan import ExpertError, PickAndPlace

_BOWL = "akita_black_bowl_1"
# Robosuite's controller drifts by a centimetre towards +x on its way down (test/data/osc_response.json, -z), and within a chunk
# played open loop nothing corrects it: aim short of the object and of the goal.
_DRIFT = -0.01  # m
_RIM = (_DRIFT, 0.045, 0.035)  # m: the bowl is wider than the gripper and is taken by its rim
_PACKAGES = (
    "alphabet soup",
    "cream cheese",
    "salad dressing",
    "bbq sauce",
    "ketchup",
    "tomato sauce",
    "butter",
    "milk",
    "chocolate pudding",
    "orange juice",
)
_BOWL_PLACES = (
    "between the plate and the ramekin",
    "next to the ramekin",
    "from table center",
    "on the cookie box",
    "on the ramekin",
    "next to the cookie box",
    "on the stove",
    "next to the plate",
    "on the wooden cabinet",
)


def _into_basket(package: str) -> PickAndPlace:
    return PickAndPlace(
        f"{package.replace(' ', '_')}_1", "basket_1_contain_region", grasp=(_DRIFT, 0.0, 0.01), release=0.18, hover=0.13, lift=0.25
    )


def _bowl_onto(goal: str, release: float = 0.07) -> PickAndPlace:
    return PickAndPlace(_BOWL, goal, grasp=_RIM, place_at=(1.5 * _DRIFT, 0.0), release=release, hover=0.13, lift=0.2)


PLANS: Mapping[str, Mapping[str, PickAndPlace]] = {
    "libero_object": {f"pick up the {package} and place it in the basket": _into_basket(package) for package in _PACKAGES},
    "libero_spatial": {f"pick up the black bowl {place} and place it on the plate": _bowl_onto("plate_1") for place in _BOWL_PLACES},
    "libero_goal": {
        "put the bowl on the plate": _bowl_onto("plate_1"),
        "put the bowl on the stove": _bowl_onto("flat_stove_1_cook_region"),
        "put the bowl on top of the cabinet": _bowl_onto("wooden_cabinet_1_top_side"),
        "put the cream cheese in the bowl": PickAndPlace(
            "cream_cheese_1", _BOWL, grasp=(_DRIFT, 0.0, 0.01), release=0.1, hover=0.13, lift=0.2
        ),
    },
}


def plans(suite: str) -> Mapping[str, PickAndPlace]:
    """Instruction -> plan of one suite. Raises ExpertError for a suite without any."""
    if suite not in PLANS:
        raise ExpertError(f"the expert has no plans for {suite!r}: it has some for {', '.join(PLANS)}")
    return PLANS[suite]
