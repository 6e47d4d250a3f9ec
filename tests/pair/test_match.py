"""Units are paired by the trees of their axes, by known partners, and by name."""

import re

import pytest
import torch
import torch.nn.functional as F
from models import PAIRS, features
from torch import nn

from lightning_grow import RefusedGrowth, grow
from lightning_grow.pair.match import Match
from lightning_grow.pair.match_modules import match_tapes
from lightning_grow.pair.named_inputs import pair_by_name
from lightning_grow.pair.names import match_names
from lightning_grow.trace.axes import Axis, atoms, product_of, sum_of
from lightning_grow.trace.tape import Trace
from lightning_grow.trace.tracer import named_tensors, trace


def blank():
    return Match(Trace(), Trace(), {}, {})


def state(match, source, target, place):
    match.refused += match.pair(source, target, place)


def old_positions(source, target):
    match = blank()
    state(match, source, target, "here")
    assert match.refusals() == []
    return match.old_positions(target).tolist()


def units(*sizes):
    return [Axis(size) for size in sizes]


# (source axis, target axis, where the source's positions stand in the target)
PLACES = {
    "units": (lambda: Axis(2), lambda: Axis(4), [0, 1]),
    "streams": (lambda: sum_of(units(2, 3)), lambda: sum_of(units(3, 4)), [0, 1, 3, 4, 5]),
    "heads by size": (lambda: product_of(units(2, 2)), lambda: product_of(units(3, 3)), [0, 1, 3, 4]),
    "more heads": (lambda: product_of(units(2, 2)), lambda: product_of(units(3, 2)), [0, 1, 2, 3]),
    "larger heads": (lambda: product_of(units(2, 2)), lambda: product_of(units(2, 3)), [0, 1, 3, 4]),
    "one head becomes two": (lambda: Axis(3), lambda: product_of(units(2, 3)), [0, 1, 2]),
    "a stream more": (lambda: sum_of(units(2, 3)), lambda: sum_of(units(2, 3, 2)), [0, 1, 2, 3, 4]),
    "a stream of one unit more": (lambda: sum_of(units(2, 3)), lambda: sum_of(units(2, 3, 1)), [0, 1, 2, 3, 4]),
    "one head becomes two kinds": (lambda: Axis(3), lambda: product_of([sum_of(units(1, 1)), Axis(3)]), [0, 1, 2]),
    "the first of equal streams": (lambda: sum_of(units(2, 2)), lambda: sum_of(units(2, 2, 2)), [0, 1, 2, 3]),
    "the stream of that size": (lambda: sum_of(units(5, 2)), lambda: sum_of(units(3, 5, 2)), [3, 4, 5, 6, 7, 8, 9]),
    "a layout that only the target saw": (lambda: Axis(6), lambda: product_of(units(2, 3)), [0, 1, 2, 3, 4, 5]),
    "a layout that only the source saw": (lambda: sum_of(units(2, 4)), lambda: Axis(6), [0, 1, 2, 3, 4, 5]),
    "cuts in other places": (lambda: sum_of(units(2, 4)), lambda: sum_of(units(3, 3)), [0, 1, 2, 3, 4, 5]),
}


@pytest.mark.parametrize(("source", "target", "places"), PLACES.values(), ids=PLACES)
def test_the_sources_positions_are_found(source, target, places):
    assert old_positions(source(), target()) == places


def test_gates_share_their_units():
    old, new = Axis(2), Axis(3)
    assert old_positions(sum_of([old] * 4), sum_of([new] * 4)) == [0, 1, 3, 4, 6, 7, 9, 10]


def test_a_known_partner_wins_over_an_equal_size():
    match = blank()
    trunk, skip = units(4, 4)
    new_trunk, new_skip, extra = units(6, 4, 4)
    state(match, trunk, new_trunk, "the trunk")
    state(match, skip, new_skip, "the skip")
    state(match, sum_of([trunk, skip]), sum_of([extra, new_trunk, new_skip]), "their concatenation")
    assert match.refusals() == []
    assert match.old_size(extra) == 0
    assert match.old_positions(sum_of([extra, new_trunk, new_skip])).tolist() == [4, 5, 6, 7, 10, 11, 12, 13]


REFUSED = {
    "smaller": (lambda: Axis(4), lambda: Axis(3), "source has 4 units, target has 3. .* at least 4"),
    "a smaller factor": (
        lambda: product_of(units(4, 16)),
        lambda: product_of(units(8, 8)),
        "one size grows at the cost of another",
    ),
    "fewer parts": (
        lambda: sum_of(units(2, 2, 2)),
        lambda: sum_of(units(4, 3)),
        r"as \(2\+2\+2\), the target .*\(4\+3\)",
    ),
}


@pytest.mark.parametrize(("source", "target", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_counterpart_is_refused_with_its_place(source, target, message):
    match = blank()
    state(match, source(), target(), "'layer.weight' axis 0")
    (reason,) = match.refusals()
    assert reason.startswith("cannot grow 'layer.weight' axis 0")
    assert re.search(message, reason)


def test_sizes_that_only_the_target_joins_are_refused():
    match = blank()
    joined = Axis(6)
    state(match, Axis(3), joined, "'a' axis 0")
    state(match, Axis(4), joined, "'b' axis 0")
    (reason,) = match.refusals()
    assert "have 4 source units here, but 3 at 'a' axis 0" in reason


def test_units_are_found_by_name():
    match, axis = blank(), Axis(5)
    state(match, Axis(3), axis, "the input")
    pair_by_name(match, axis, ["a", "b", "c"], ["new", "c", "a", "other", "b"])
    assert match.old_positions(axis).tolist() == [2, 4, 1]  # in the source's order
    assert match.units(axis).source.tolist() == [-1, 2, 0, -1, 1]


def test_a_name_that_is_gone_is_refused():
    match, axis = blank(), Axis(3)
    state(match, Axis(3), axis, "the input")
    pair_by_name(match, axis, ["a", "b", "c"], ["a", "x", "c"])
    assert match.refusals() == [
        "inputs are gone: 1 of the source's 3 input names are not in the target (b). Growth only adds inputs: keep "
        "these, or name them in drop_inputs (patterns like b* will do), which changes the outputs."
    ]


def test_named_inputs_may_be_dropped():
    match, axis = blank(), Axis(3)
    state(match, Axis(4), axis, "the input")
    assert match.refusals()
    assert pair_by_name(match, axis, ["a", "b1", "c[1]", "b2"], ["c[1]", "new", "a"], ["b*"]) == ["b1", "b2"]
    assert match.refusals() == []
    assert (match.old_positions(axis).tolist(), match.source_positions(axis).tolist()) == ([2, 0], [0, 2])
    assert (match.old_size(axis), match.grows(axis)) == (2, True)


@pytest.mark.parametrize(
    ("pattern", "gone"),
    [
        ("*[-20]", ["rsi@1h[-20]", "rsi@4h[-20]"]),
        ("*@1h[-2?]", ["rsi@1h[-20]"]),
        ("*@4h[-2*]", ["rsi@4h[-20]", "rsi@4h[-2]"]),
        ("rsi@1h[-20]", ["rsi@1h[-20]"]),
    ],
)
def test_brackets_are_a_part_of_names(pattern, gone):
    names = ["rsi@1h[-20]", "rsi@4h[-20]", "rsi@4h[-2]", "rsi@4h[-1]", "x-"]
    kept = [name for name in names if name not in gone]
    match, axis = blank(), Axis(len(kept))
    state(match, Axis(len(names)), axis, "the input")
    assert pair_by_name(match, axis, names, kept, [pattern]) == gone
    assert match.refusals() == []


@pytest.mark.parametrize(("dropped", "words"), [(["x"], "drop_inputs names x,"), (["b", "a"], "drop_inputs names a,")])
def test_a_dropped_input_must_be_one_that_is_gone(dropped, words):
    match, axis = blank(), Axis(2)
    state(match, Axis(3), axis, "the input")
    pair_by_name(match, axis, ["a", "b", "c"], ["a", "c"], dropped)
    assert any(words in reason for reason in match.refusals())


def test_named_inputs_of_a_split_axis_are_refused():
    match, axis = blank(), sum_of(units(2, 3))
    pair_by_name(match, axis, ["a", "b"], ["a", "b", "c", "d", "e"])
    assert "the model splits its input axis as (2+3)" in match.refusals()[0]


def paired(pair):
    source, target, inputs = pair.make()
    old, new = trace(source, inputs), trace(target, inputs)
    shapes = [{name: tuple(item.shape) for name, item in named_tensors(module).items()} for module in (source, target)]
    return new, match_tapes(old, new, match_names(*shapes))


@pytest.mark.parametrize(
    ("pair", "groups"),
    [
        ("relu", [(8, 12), (8, 10)]),
        ("streams", [(4, 6), (6, 9)]),
        ("LSTM", [(5, 8)]),  # one initial state holds the units of both layers
        ("more groups of heads", [(2, 3)]),
        ("larger heads", [(8, 11), (4, 6)]),
        ("convolution", [(4, 6), (8, 12)]),
    ],
)
def test_every_growing_size_is_one_group(pair, groups):
    tape, match = paired(PAIRS[pair])
    assert match.refusals() == []
    growing = {atom: None for value in tape.tensors.values() for axis in value.axes for atom in atoms(axis)}
    found = [(match.old_size(atom), atom.size) for atom in growing if match.grows(atom) and match.old_size(atom)]
    assert sorted(found) == sorted(groups)


def test_a_new_layers_units_have_no_source():
    tape, match = paired(PAIRS["residual depth"])
    (inner,) = atoms(tape.tensors["blocks.3.1.weight"].axes[0])
    (stream,) = atoms(tape.tensors["blocks.3.1.weight"].axes[1])
    assert (match.old_size(inner), inner.size) == (0, 14)
    assert (match.old_size(stream), stream.size) == (8, 8)


def test_a_prefix_is_what_stands_without_names():
    match, axis = blank(), Axis(4)
    state(match, Axis(2), axis, "units")
    torch.testing.assert_close(match.units(axis).source, torch.tensor([0, 1, -1, -1], dtype=torch.float64))


class Shuffled(nn.Module):
    """ShuffleNet: half of the channels take a grouped convolution, then the halves are interleaved, again and again."""

    def __init__(self, width, groups=2):
        super().__init__()
        self.before, self.into = nn.Linear(3, width), nn.Conv2d(3, 2 * width, 1)
        self.grouped, self.out = nn.Conv2d(width, width, 1, groups=groups), nn.Linear(2 * width, 2)

    def forward(self, x):
        x = self.into(x + self.before(x.transpose(1, 3)).relu().mean())
        for _ in range(2):
            first, second = x.chunk(2, 1)
            x = F.channel_shuffle(torch.cat([first, self.grouped(second).relu()], 1), 2)
        return self.out(x.mean((2, 3)))


@pytest.mark.parametrize("strategy", ["preserve", "net2wider", "interpolate"])
@pytest.mark.parametrize(("old", "new"), [(4, 8), (4, 6), (2, 4), (4, 16)])
def test_units_that_stand_alone_are_refused_before_anything_is_written(old, new, strategy):
    source, target, x = Shuffled(old), Shuffled(new), (torch.randn(2, 3, 4, 4),)
    before = {name: item.clone() for name, item in target.state_dict().items()}
    for verify in (True, False):
        with pytest.raises(
            RefusedGrowth, match=r"cannot grow 'into\.weight' axis 0 \(and 1 more place\): the source uses its"
        ):
            grow(source, target, strategy=strategy, example_inputs=x, verify=verify)
    assert all(torch.equal(before[name], item) for name, item in target.state_dict().items())


class Extra(nn.Module):
    """A stream beside the units that only the target has."""

    def __init__(self, width, extra):
        super().__init__()
        self.into, self.out = nn.Linear(6, width), nn.Linear(width + 2 + extra, 3)
        self.last = nn.Linear(6, 2)
        self.extra = nn.Linear(6, extra) if extra else None

    def forward(self, x):
        streams = [self.into(x).tanh(), self.last(x), *([self.extra(x).tanh()] if self.extra is not None else [])]
        return self.out(torch.cat(streams, -1))


@pytest.mark.parametrize("extra", [1, 2])
@pytest.mark.parametrize("width", [4, 6])
def test_a_new_stream_of_one_unit_is_new(width, extra):
    source, target = Extra(4, 0).double(), Extra(width, extra).double()
    report = grow(source, target, example_inputs=features())
    assert report.max_output_error <= 1e-13  # float64, a few dozen operations
    assert not target.out.weight[:, width + 2 :].any()
    assert target.extra.weight.any()
    grow(source, target, strategy="copy_and_extend", example_inputs=features())
    assert torch.equal(target.out.weight[:, :4], source.out.weight[:, :4])
    assert torch.equal(target.out.weight[:, width : width + 2], source.out.weight[:, 4:])


class Remembering(nn.Module):
    """A layer that makes its table in its first call, as ConViT does, with weights of its own on it."""

    def __init__(self, width):
        super().__init__()
        self.into, self.out, self.place = nn.Linear(8, width), nn.Linear(width, 8), nn.Linear(3, 1)
        self.register_buffer("table", torch.zeros(1, 1, 3), persistent=False)

    def forward(self, x):
        if len(self.table) != len(x):
            self.table = torch.linspace(-1, 1, 3 * len(x) ** 2, dtype=x.dtype).view(len(x), len(x), 3)
        return x + self.place(self.table).squeeze(-1).softmax(-1) @ self.out(self.into(x).relu())


@pytest.mark.parametrize("called", [(0,), (1,), (0, 1)], ids=["source", "target", "both"])
@pytest.mark.parametrize("widths", [(9,), (9, 7)], ids=["width", "depth"])
def test_a_table_of_an_earlier_call_is_no_difference(widths, called):
    nets = [nn.Sequential(*map(Remembering, item)).double() for item in ((6,), widths)]
    x = torch.randn(4, 8, dtype=torch.float64)
    for number in called:
        nets[number](x)
    assert grow(*nets, example_inputs=(x,)).max_output_error <= 1e-14
