"""The strategies keep what the table in docs/strategies.md says of them."""

import itertools

import pytest
import torch
from models import PAIRS, Pair, features, stack
from torch import nn

from lightning_grow import Strategy, UnknownStrategy, grow, list_strategies, register_strategy
from lightning_grow.grow import transfer
from lightning_grow.strategies import base
from lightning_grow.strategies.copy_and_extend import CopyAndExtend
from lightning_grow.strategies.interpolate import Interpolate
from lightning_grow.strategies.net2wider import Net2Wider

WIDENED = Pair(stack, (16, 16), (40, 24), options={"activation": nn.Tanh})


def grown(strategy, pair=WIDENED, **options):
    source, target, inputs = pair.make()
    initial = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    return source, initial, transfer(source, target, strategy=strategy, example_inputs=inputs, **options)


def is_new(done, name):
    return done.plan.new_entries(name)


@pytest.mark.parametrize("strategy", sorted(set(list_strategies()) - {"random"}))
def test_source_entries_keep_their_places(strategy):
    source, _, done = grown(strategy)
    for name, tensor in source.state_dict().items():
        block = done.state_dict[name][tuple(slice(size) for size in tensor.shape)]
        if strategy == "net2wider" and name in ("2.weight", "4.weight"):
            continue  # what reads copies is divided among them
        assert torch.equal(block, tensor), name


def test_random_transfers_nothing():
    _, initial, done = grown("random")
    assert all(torch.equal(initial[name], tensor) for name, tensor in done.state_dict.items())
    assert done.report.tensors[0].copied == 0


def test_zero_pad_leaves_zeros_and_counts_the_dead():
    _, _, done = grown("zero_pad")
    assert all(not done.state_dict[name][is_new(done, name)].any() for name in done.state_dict)
    assert sum(done.report.dead_units.values()) == 24 + 8
    assert sum(done.report.twin_units.values()) == 24 + 8
    assert done.report.function_preserving  # no statistic runs over units here
    assert not grown("zero_pad", PAIRS["LayerNorm x1.5"])[2].report.function_preserving


@pytest.mark.parametrize("scale", [0.1, 0.5])
def test_copy_and_extend_draws_a_fraction_of_the_spread(scale):
    source, _, done = grown(CopyAndExtend(init_scale=scale))
    drawn = done.state_dict["2.weight"][is_new(done, "2.weight")]
    wanted = scale * float(source[2].weight.detach().std(correction=0))
    assert drawn.numel() == 40 * 24 - 16 * 16
    # the standard deviation of n normal draws is known to 1/sqrt(2n); five times that
    assert drawn.std() == pytest.approx(wanted, rel=5 / (2 * drawn.numel()) ** 0.5)
    assert not done.state_dict["2.bias"][is_new(done, "2.bias")].any()
    assert not done.report.function_preserving
    assert done.report.max_output_error > 1e-4


def test_copy_and_extend_leaves_norms_as_they_start():
    _, _, done = grown("copy_and_extend", PAIRS["LayerNorm x1.5"])
    assert (done.state_dict["norm.weight"][8:] == 1).all()


def test_a_negative_scale_is_an_error():
    with pytest.raises(ValueError, match="init_scale >= 0, got -1"):
        CopyAndExtend(init_scale=-1)


@pytest.mark.parametrize(("old", "new"), [(2, 3), (3, 6), (16, 40), (5, 9), (128, 256)])
def test_interpolated_units_lie_strictly_between_and_apart(old, new):
    units = Interpolate().units(old, new, torch.Generator())
    assert len(units) == new - old
    assert (units > 0).all()
    assert (units < old - 1).all()
    assert (units != units.round()).all()
    assert len(set(units.tolist())) == new - old


def test_interpolation_agrees_with_numpy():
    source, _, done = grown("interpolate", Pair(stack, (4,), (6,)))
    units = Interpolate().units(4, 6, torch.Generator())
    low, weight = units.floor().long(), units - units.floor()
    old = source[0].weight
    wanted = old[low] * (1 - weight)[:, None] + old[low + 1] * weight[:, None]
    torch.testing.assert_close(done.state_dict["0.weight"][4:], wanted, rtol=1e-14, atol=1e-16)
    columns = source[2].weight[:, low] * (1 - weight) + source[2].weight[:, low + 1] * weight
    torch.testing.assert_close(done.state_dict["2.weight"][:, 4:], columns, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize(("old", "new"), [(3, 4), (3, 6), (3, 10), (16, 40)])
def test_shares_add_up_and_differ(old, new):
    source = torch.cat([torch.arange(old), Net2Wider().units(old, new, torch.Generator()).long()])
    shares = base.unequal_shares(source)
    for unit in range(old):
        own = shares[source == unit]
        assert own.sum() == pytest.approx(1.0, abs=1e-15)
        assert (own > 0).all()
        assert len(set(own.tolist())) == len(own)


def test_net2wider_copies_fan_in_and_divides_fan_out():
    source, _, done = grown("net2wider", Pair(stack, (4,), (6,)))
    new = done.state_dict
    assert torch.equal(new["0.weight"][4:], source[0].weight[:2])
    assert torch.equal(new["0.bias"][4:], source[0].bias[:2])
    assert torch.equal(new["2.weight"][:, 2:4], source[2].weight[:, 2:])
    torch.testing.assert_close(
        new["2.weight"][:, :2] + new["2.weight"][:, 4:], source[2].weight[:, :2], rtol=1e-15, atol=0
    )


def test_preserve_reads_fresh_units_with_zeros():
    _, initial, done = grown("preserve")
    assert torch.equal(done.state_dict["0.weight"][16:], initial["0.weight"][16:])
    assert torch.equal(done.state_dict["2.weight"][16:], initial["2.weight"][16:])
    assert not done.state_dict["2.weight"][:16, 16:].any()
    assert not done.state_dict["4.weight"][:, 16:].any()


def test_the_lossy_ones_say_what_was_lost():
    report = grown("zero_pad", PAIRS["LayerNorm x1.5"])[2].report
    assert report.refused == []  # a recipe exists; zero_pad just does not use it
    _, _, done = grown("copy_and_extend", Pair(stack, (8, 8), (8, 8, 8), options={"activation": nn.Tanh}))
    assert "aten.tanh" in done.report.refused[0]
    assert done.report.max_output_error > 1e-3


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(
        UnknownStrategy, match=r"no strategy named 'preserv'. Did you mean 'preserve'\? Registered: copy"
    ):
        grown("preserv")
    with pytest.raises(LookupError):
        grown("nothing like it")


def test_a_name_is_registered_once():
    with pytest.raises(
        ValueError, match=r"'preserve' is taken by lightning_grow.strategies.preserve.Preserve; register .*Mine"
    ):

        @register_strategy("preserve")
        class Mine(Strategy):
            pass


@pytest.fixture
def halves():
    @register_strategy("halves")
    class Halves(Strategy):
        """Every new unit copies unit 0, read with equal shares; keeps the function."""

        function_preserving = True

        def units(self, old, new, generator):
            return torch.zeros(new - old, dtype=torch.float64)

        def shares(self, source, generator):
            return 1.0 / torch.bincount(source)[source].double()

    yield Halves
    del base._REGISTRY["halves"]


def test_a_strategy_of_ones_own_works_everywhere(halves):
    source, _, done = grown("halves", Pair(stack, (4,), (6,)))
    assert "halves" in list_strategies()
    assert done.report.max_output_error < 1e-15
    assert torch.equal(done.state_dict["0.weight"][4:], source[0].weight[:1].expand(2, 6))
    torch.testing.assert_close(done.state_dict["2.weight"][:, 0], source[2].weight[:, 0] / 3)
    assert done.report.strategy == "halves"


def test_a_strategy_fills_what_no_source_gives():
    seen = []

    class Constant(Strategy):
        name = "constant"

        def fill(self, block):
            seen.append((block.name, block.role))
            return torch.full_like(block.initial, 7.0)

    source, target, inputs = Pair(stack, (4,), (6,)).make()
    report = grow(source, target, strategy=Constant(), example_inputs=inputs)
    assert (target[0].weight[4:] == 7).all()
    assert (target[2].weight[:, 4:] == 7).all()
    assert ("0.weight", "written") in seen
    assert ("2.weight", "read") in seen
    assert not report.function_preserving


class Masked(nn.Module):
    """Units times the entries of a buffer, or of a parameter, of any type."""

    def __init__(self, values, learned=False):
        super().__init__()
        self.into, self.out = nn.Linear(6, len(values)), nn.Linear(len(values), 3)
        if learned:
            self.values = nn.Parameter(values, requires_grad=values.is_complex())
        else:
            self.register_buffer("values", values)

    def forward(self, x):
        return self.out(self.into(x) * self.values.abs() if self.values.is_complex() else self.into(x) * self.values)


@pytest.mark.parametrize("learned", [False, True], ids=["buffer", "parameter"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("width", [6, 7, 8])
def test_new_units_lie_between_or_are_the_nearest_where_the_type_has_nothing_between(width, dtype, learned):
    plain = torch.tensor([0.0, 10.0, 20.0, 30.0])
    grown = []
    for values in (plain, plain.bool() if dtype is torch.bool else plain.to(dtype)):
        source, target = Masked(values, learned), Masked(torch.zeros(width, dtype=values.dtype), learned)
        grow(source, target, strategy="interpolate", example_inputs=(features()[0].float(),))
        grown.append(target.values.detach())
    between, typed = grown
    nearest = ((between / 10 - 0.5).ceil() * 10).to(dtype)  # of two as near the first
    torch.testing.assert_close(typed, between.to(dtype) if dtype.is_floating_point or dtype.is_complex else nearest)


def deep(widths):
    sizes = [6, *widths]
    layers = [part for pair in itertools.pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 3)).double()


@pytest.mark.parametrize("strategy", ["copy_and_extend", "interpolate", "zero_pad"])
def test_a_new_layer_is_an_identity_even_where_the_function_is_not_promised(strategy):
    source, target = deep([8]), deep([8, 8])
    grow(source, target, strategy=strategy, example_inputs=features())
    new = next(part for part in target if isinstance(part, nn.Linear) and torch.equal(part.weight, torch.eye(8)))
    assert not new.bias.any()
    torch.testing.assert_close(target(*features()), source(*features()))


class Streams(nn.Module):
    """Two streams beside each other, read by one layer."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(6, first), nn.Linear(6, second), nn.Linear(first + second, 3)

    def forward(self, x):
        return self.out(torch.cat([self.first(x).tanh(), self.second(x).tanh()], -1))


def test_units_are_read_between_their_neighbours_in_every_stream():
    source, target = Streams(3, 2).double(), Streams(6, 4).double()
    grow(source, target, strategy="interpolate", example_inputs=features())
    # old units first; new ones at 1/3, 2/3 and 3/2 of three, at 1/3 and 2/3 of two
    positions = [[0, 1, 2, 1 / 3, 2 / 3, 3 / 2], [0, 1, 1 / 3, 2 / 3]]
    for columns, new, places in zip(
        source.out.weight.split([3, 2], 1), target.out.weight.split([6, 4], 1), positions, strict=True
    ):
        for number, place in enumerate(places):
            low = int(place)
            high = min(low + 1, columns.shape[1] - 1)
            wanted = torch.lerp(columns[:, low], columns[:, high], place - low)
            torch.testing.assert_close(new[:, number], wanted)


def test_an_unregistered_strategy_goes_by_its_class():
    class Own(Strategy):
        function_preserving = True

    report = grow(nn.Linear(3, 2), nn.Linear(3, 2), strategy=Own(), example_inputs=(torch.ones(1, 3),))
    assert report.summary().startswith("Own: ")
