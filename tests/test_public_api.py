"""The public names are there, and no more."""

import pytest

import lightning_grow
import lightning_grow.rl

DESIGN = [
    "ArchTransfer",
    "GrowableMixin",
    "grow",
    "plan_growth",
    "convert_checkpoint",
    "Strategy",
    "register_strategy",
    "list_strategies",
    "GrowthPlan",
    "TransferReport",
    "GrowError",
    "CheckpointError",
    "RefusedGrowth",
    "UnknownStrategy",
]


@pytest.mark.parametrize("name", DESIGN)
def test_the_name_is_public(name):
    assert name in lightning_grow.__all__
    assert getattr(lightning_grow, name).__doc__


def test_all_is_what_can_be_had():
    assert lightning_grow.__all__ == sorted(lightning_grow.__all__, key=lambda name: (name.islower(), name))
    assert all(hasattr(lightning_grow, name) for name in lightning_grow.__all__)
    assert {"PPO", "ActorCritic"} <= set(lightning_grow.rl.__all__)


def test_another_name_is_an_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lightning_grow.nothing


@pytest.mark.parametrize(
    "child", [lightning_grow.CheckpointError, lightning_grow.RefusedGrowth, lightning_grow.UnknownStrategy]
)
def test_errors_have_one_root(child):
    assert issubclass(child, lightning_grow.GrowError)
