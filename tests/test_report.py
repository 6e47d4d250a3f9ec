"""What is reported is what was done."""

import json

import pytest
import torch
from models import PAIRS, Encoder, Pair, sequence, stack

from lightning_grow import grow, list_strategies, plan_growth
from lightning_grow.report import SCHEMA_VERSION


@pytest.mark.parametrize("strategy", list_strategies())
@pytest.mark.parametrize("pair", ["relu", "LSTM", "residual stream", "deeper, earliest"])
def test_counts_add_up(pair, strategy):
    source, target, inputs = PAIRS[pair].make()
    report = grow(source, target, strategy=strategy, example_inputs=inputs)
    tensors = {item.name: item for item in report.tensors}
    assert tensors.keys() == target.state_dict().keys()
    for name, item in tensors.items():
        assert item.copied + item.new == target.state_dict()[name].numel()
        assert 0 <= item.zeroed <= item.new
        assert item.target_shape == tuple(target.state_dict()[name].shape)


def test_the_dictionary_is_plain():
    source, target, inputs = PAIRS["relu"].make()
    report = grow(source, target, example_inputs=inputs)
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["schema_version"] == SCHEMA_VERSION
    assert plain["tensors"][0]["target_shape"] == [12, 6]
    assert plain["tensors"][0]["axes"] == ["fan-out 8 -> 12"]
    assert plain["max_output_error"] == report.max_output_error


def test_it_prints_as_a_table():
    source, target, inputs = Pair(stack, (4,), (6,)).make()
    report = grow(source, target, strategy="zero_pad", example_inputs=inputs)
    text = str(report)
    assert "Transfer by zero_pad" in text
    assert "4x6" in text and "6x6" in text  # noqa: PT018
    assert "2 dead units" in text
    assert "function-preserving" in report.summary()


def test_factors_are_reported():
    source, target, inputs = PAIRS["LayerNorm x1.5"].make()
    report = grow(source, target, example_inputs=inputs)
    factors = {item.name: item.factor for item in report.tensors}
    # the writers take up sqrt(12/8), the gain gives it back
    assert factors["into.weight"] == pytest.approx(1.5**0.5)
    assert factors["norm.weight"] == pytest.approx(1.5**-0.5)
    assert factors["out.weight"] == 1.0


def test_without_a_check_there_is_no_error_to_report():
    source, target, inputs = PAIRS["relu"].make()
    report = grow(source, target, example_inputs=inputs, verify=False)
    assert report.max_output_error is None
    assert report.tolerance is None
    assert "not verified" in report.summary()
    assert torch.equal(target[0].weight[:8], source[0].weight)


def test_equal_layers_are_one_row_and_new_ones_are_named():
    source, target, inputs = Pair(Encoder, (8, 2, 12, 2), (8, 2, 16, 4), sequence).make()
    lines = str(grow(source, target, example_inputs=inputs)).splitlines()
    rows = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    assert "encoder.layers.{0-1}.linear1.weight" in rows
    assert "encoder.layers.{2-3}.linear1.weight" in rows
    assert len(rows) == len(set(rows)) == 2 * 12 + 6
    plan = str(plan_growth(*Pair(Encoder, (8, 2, 12, 2), (8, 2, 16, 4), sequence).make()[:2], example_inputs=inputs))
    assert "New layers: encoder.layers.{2-3}." in plan
    assert plan.count("linear1.weight'") == 1
