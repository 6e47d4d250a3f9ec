"""What is said of a growth, value by value."""

import pytest

from lightning_grow.monitor.recovery import Recovery

BEFORE = [10.0, 11.0, 9.0, 10.0]  # mean 10, two standard deviations 1.41


def tell(values, larger_is_better=True, before=BEFORE):
    recovery = Recovery("value", 100, before, larger_is_better)
    said = [recovery.take(100 + 5 * number, value) for number, value in enumerate(values, start=1)]
    return said, recovery.at_last()


def test_no_drop():
    said, last = tell([9.0, 10.0, 11.0])
    assert said == [None, None, "no drop of value after the growth at step 100: 10 before, 10 after."]
    assert last is None


@pytest.mark.parametrize(("sign", "larger_is_better"), [(1, True), (-1, False)])
def test_a_drop_and_a_recovery(sign, larger_is_better):
    values, before = ([sign * value for value in row] for row in ([8.0, 4.0, 9.0, 9.9], BEFORE))
    said, _ = tell(values, larger_is_better, before)
    dropped = f"value dropped from {sign * 10} to {sign * 4} after the growth at step 100"
    assert said == [None, None, None, f"{dropped} and recovered after 20 steps."]


def test_a_drop_that_lasts_is_said_at_the_end():
    said, last = tell([4.0, 5.0])
    assert said == [None, None]
    assert last == "value has not recovered 10 steps after the growth at step 100: 10 before, 5 now."


def test_an_improvement_is_said_once():
    said, _ = tell([10.0, 10.0, 10.0, 12.0, 13.0, 14.0, 15.0])
    better = "value is better than before the growth at step 100: 10 before, 14 now."
    assert said[2:] == ["no drop of value after the growth at step 100: 10 before, 10 after.", None, None, better, None]


def test_values_that_never_moved_before_count_to_the_last_digit():
    assert tell([5.0, 5.0, 5.0], before=[5.0, 5.0])[0][-1].startswith("no drop")
    assert tell([4.9], before=[5.0, 5.0])[1].startswith("value has not recovered")


def test_it_goes_on_from_plain_types():
    recovery = Recovery("value", 100, BEFORE, larger_is_better=True)
    recovery.take(105, 4.0)
    again = Recovery(**recovery.to_dict())
    assert again.take(110, 10.0) == recovery.take(110, 10.0) is not None


def test_too_few_values_without_a_drop_are_no_drop_that_lasts():
    assert tell([10.0, 9.5]) == ([None, None], None)


def test_what_is_kept_does_not_grow_with_the_run():
    recovery = Recovery("value", 100, BEFORE, larger_is_better=True)
    for step in range(1000):
        recovery.take(101 + step, 4.0)
    assert len(recovery.after) == Recovery.CLEAR
    assert recovery.take(2000, 10.0) == (
        "value dropped from 10 to 4 after the growth at step 100 and recovered after 1900 steps."
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        ([], {}),
        ([9.0, 10.0, 11.0], {"drop": 0.0, "recovered_after": 0, "gain": 1.0}),
        ([8.0, 4.0, 9.0, 9.75, 3.0], {"drop": 6.0, "recovered_after": 20, "gain": -7.0}),
        ([4.0, 5.0], {"drop": 6.0, "gain": -5.0}),
        ([10.0, 10.0, 10.0, 12.0, 13.0, 14.0, 15.0], {"drop": 0.0, "recovered_after": 0, "gain": 5.0}),
    ],
)
def test_a_summary_has_the_drop_the_recovery_and_the_gain_as_it_is_now(sign, values, numbers):
    recovery = Recovery("value", 100, [sign * value for value in BEFORE], larger_is_better=sign > 0)
    for number, value in enumerate(values, start=1):
        recovery.take(100 + 5 * number, sign * value)
    assert recovery.summary() == numbers
