"""Models that the library was not written for: exact, or refused for the right reason."""

import pytest
import torch
from blocks import weightless
from huggingface import GROWTHS, make

from lightning_grow import RefusedGrowth, grow, plan_growth

NO_START = {"Decision Transformer": r"\(Conv1D\) .*has no reset_parameters .*nor does an _init_weights"}
"""Where only a constructor says what new entries start at."""


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize(("name", "what", "growth"), GROWTHS, ids=[f"{name}, {what}" for name, what, _ in GROWTHS])
def test_the_model_grows_exactly_or_is_refused(name, what, growth, strategy):
    source, target, options = make(name, growth)
    if growth.refused:
        with pytest.raises(RefusedGrowth, match=f"(?s){growth.refused}") as caught:
            grow(source, target, strategy=strategy, **options)
        assert "the plan expected it to be exact" not in str(caught.value)
        return
    report = grow(source, target, strategy=strategy, **options)
    # Many of these compute norms or rotations in float32 inside a float64 model; that is their floor.
    assert report.max_output_error <= report.tolerance < 100 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize(("name", "what", "growth"), GROWTHS, ids=[f"{name}, {what}" for name, what, _ in GROWTHS])
def test_a_target_without_weights_gets_the_same_verdict(name, what, growth):
    source, target, options = make(name, growth)
    plan = plan_growth(source, weightless(target), **options)
    assert bool(plan.refused) == bool(growth.refused), plan.refused


@pytest.mark.parametrize(("name", "what", "growth"), GROWTHS, ids=[f"{name}, {what}" for name, what, _ in GROWTHS])
def test_a_target_built_on_meta_gets_the_same_verdict(name, what, growth):
    source, target, options = make(name, growth, "meta")
    refused = growth.refused or NO_START.get(name)
    if refused:
        with pytest.raises(RefusedGrowth, match=f"(?s){refused}"):
            grow(source, target, **options)
        return
    report = grow(source, target, **options)
    assert report.max_output_error <= report.tolerance < 100 * torch.finfo(torch.float32).eps
    assert not any(tensor.is_meta for tensor in (*target.parameters(), *target.buffers()))


def test_a_target_without_weights_keeps_its_buffers():
    name, _, growth = next(item for item in GROWTHS if item[:2] == ("Llama", "inner width"))
    source, target, options = make(name, growth)
    empty = weightless(target)
    assert grow(source, empty, **options).max_output_error <= 1e-6  # its rotations are computed in float32
    assert all(not tensor.is_meta for tensor in empty.state_dict().values())
