"""Whatever has happened to a file, it is refused cleanly or grown exactly; `scripts/fuzz` tries as many as you like."""

import pytest
from fuzzing import CALLS, judge, make_file, try_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stacks import Stack, train_small

from lightning_grow import ArchTransfer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    _, path = train_small(tmp_path_factory.mktemp("whole"), Stack, ArchTransfer())
    return path


@settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**31))
def test_a_file_is_refused_or_grown_exactly(whole, seed):
    door, change, outcome = try_file(whole.read_bytes(), seed, whole.parent)
    assert outcome.verdict in ("refused", "grown"), (door, change, outcome)
    assert not CALLS


@pytest.mark.parametrize("door", ["convert", "fit", "validate"])
def test_the_judge_lets_a_whole_file_pass(whole, door):
    assert judge(whole, door, whole.parent).verdict == "grown"


def test_a_seed_stands_for_one_file(whole, tmp_path):
    for path in (tmp_path / "a", tmp_path / "b"):
        make_file(whole.read_bytes(), 7, path)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
