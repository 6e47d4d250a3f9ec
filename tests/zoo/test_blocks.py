"""Blocks of real projects: exact, or refused for the right reason."""

import pytest
from blocks import BLOCKS, weightless
from families import FAMILIES
from models import PAIRS, Pair
from routed import ROUTED

from lightning_grow import RefusedGrowth, grow, measure_liveness, plan_growth
from lightning_grow.plan.run import Run

ALL = BLOCKS | ROUTED | FAMILIES


@pytest.mark.parametrize("strategy", ["preserve", "net2wider"])
@pytest.mark.parametrize("block", ALL.values(), ids=ALL)
def test_the_block_grows_exactly_or_is_refused(block, strategy):
    source, target, options = block.make()
    if block.refused:
        with pytest.raises(RefusedGrowth, match=block.refused) as caught:
            grow(source, target, strategy=strategy, **options)
        assert "the plan expected it to be exact" not in str(caught.value)
        return
    report = grow(source, target, strategy=strategy, **options)
    assert report.max_output_error <= 1e-13  # float64, a few hundred operations


@pytest.mark.parametrize("name", ["experts gathered, inner", "experts experts_choose, inner"])
def test_new_units_of_experts_learn(name):
    source, target, options = ROUTED[name].make()
    plan = plan_growth(source, target, **options)
    grow(source, target, **options)
    found = measure_liveness(plan, target, options["example_inputs"]).values()
    assert sum(group.new for group in found)
    assert not sum(group.idle for group in found)


@pytest.mark.parametrize("block", ALL.values(), ids=ALL)
def test_a_target_without_weights_gets_the_same_verdict(block):
    source, target, options = block.make()
    plan = plan_growth(source, weightless(target), **options)
    assert bool(plan.refused) == bool(block.refused), plan.refused


TAKEN_OVER = 8  # as many runs at least take over steps of the one before


def test_a_run_that_takes_over_the_steps_of_the_one_before_finds_what_a_new_one_does(monkeypatch):
    def anew(run, choice):
        run.match.rewind(run.steps[0].length)
        return Run(run.match, run.roles, run.states, choice)

    taken, under = [], Run.under

    def counted(run, choice):
        after = under(run, choice)
        taken.append(bool(after.steps))
        return after

    growths = [block.make() for block in ALL.values()]
    growths += [
        (source, target, {"example_inputs": inputs}) for source, target, inputs in map(Pair.make, PAIRS.values())
    ]
    for source, target, options in growths:
        monkeypatch.setattr(Run, "under", counted)
        plan = plan_growth(source, target, **options)
        monkeypatch.setattr(Run, "under", anew)
        expected = plan_growth(source, target, **options)
        assert str(plan) == str(expected)
        assert plan.refused == expected.refused
        for name in target.state_dict():
            assert plan.explain(name) == expected.explain(name)
    assert sum(taken) >= TAKEN_OVER
