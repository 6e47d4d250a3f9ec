"""A forward that asks what only weights know: harmless where it guards what is written by position, else refused."""

import pytest
import torch
from torch import nn

from lightning_grow import RefusedGrowth
from lightning_grow.trace.tracer import trace


class Asks(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.into, self.other, self.function = nn.Linear(3, 4), nn.Linear(4, 4), forward

    def forward(self, x):
        return self.function(self, self.into(x))


def adds_where_there_are_any(net, h):
    rows = h[:, 0] > 0
    if rows.any():
        h[rows] = net.other(h[rows])
    return h


def checks(net, h):
    if not (h.exp() > 0).all():
        raise ValueError("not positive")
    return net.other(h)


def checks_and_adds(net, h):
    return adds_where_there_are_any(net, checks(net, h))


HARMLESS = [adds_where_there_are_any, checks, checks_and_adds]


@pytest.mark.parametrize("forward", HARMLESS, ids=lambda forward: forward.__name__)
def test_what_is_guarded_is_on_the_tape(forward):
    tape = trace(Asks(forward), (torch.ones(2, 3),))
    assert {"into", "other"} <= {node.path for node in tape.nodes}
    assert not tape.branches


def one_or_the_other(net, h):
    return net.other(h) if h.mean() > 0 else h.tanh()


def other_numbers(net, h):
    return h * 2 if h.mean() > 0 else h * 3


def skips_a_layer(net, h):
    return net.other(h) if h.mean() > 0 else h


def until_it_stops(net, h):
    while (h.abs() > 1e-3).any():
        h = net.other(h)
    return h


def once_more(net, h):
    return h.tanh() if (h.abs() > 1).any() else h


def returns_the_answer(net, h):
    return h * 0 + float(bool((h > 0).any()))


def reads_a_list(net, h):
    return net.other(h) if h[0].tolist()[0] > 0 else h.tanh()


def reads_an_array(net, h):
    return net.other(h) if h.detach().numpy()[0, 0] > 0 else h.tanh()


def splits_by_counts(net, h):
    counts = [int((h[:, 0] > 0).sum()), int((h[:, 0] <= 0).sum())]
    first, second = h.split(counts)
    return torch.cat([net.other(first), second])


BRANCHES = [
    reads_a_list,
    reads_an_array,
    splits_by_counts,
    one_or_the_other,
    other_numbers,
    skips_a_layer,
    until_it_stops,
    once_more,
    returns_the_answer,
]


@pytest.mark.parametrize("forward", BRANCHES, ids=lambda forward: forward.__name__)
def test_a_choice_between_two_functions_is_refused(forward):
    with pytest.raises(RefusedGrowth, match="reads the content of a tensor that depends on weights"):
        trace(Asks(forward), (torch.ones(2, 3),))


def test_the_content_of_constants_may_be_read_in_one_piece():
    def listed(net, h):
        sizes = torch.full((2,), int(f"{torch.tensor(2)}")).tolist()
        return torch.cat(h.split(sizes, -1)[::-1], -1) * float(torch.ones(1).numpy()[0])

    assert "split_with_sizes" in [node.name for node in trace(Asks(listed), (torch.ones(2, 3),)).nodes]


def test_a_list_that_was_changed_is_another_index():
    def backwards(net, h):
        order = torch.arange(2).tolist()
        order.reverse()
        return h[order]

    index = [node.tensors()[1] for node in trace(Asks(backwards), (torch.ones(2, 3),)).nodes if node.name == "index"]
    assert index[0].constant.tolist() == [1, 0]


def test_what_is_written_into_an_array_of_a_constant_stays_out_of_the_module():
    class Counts(nn.Linear):
        def __init__(self):
            super().__init__(3, 4)
            self.register_buffer("seen", torch.zeros(2, dtype=torch.long))

        def forward(self, x):
            self.seen.numpy()[0] += 1
            return super().forward(x)

    module = Counts()
    trace(module, (torch.ones(2, 3),))
    assert not module.seen.any()


def test_every_row_goes_everywhere_whatever_the_weights_are():
    def rows(net, h):
        return h.index_add(0, (h[:, 0] > 0).nonzero()[:, 0], net.other(h[h[:, 0] > 0]))

    shapes = set()
    for seed in range(5):
        torch.manual_seed(seed)
        tape = trace(Asks(rows), (torch.ones(6, 3),))
        shapes.add(str([node.shapes for node in tape.nodes]))
    assert len(shapes) == 1
