"""Mixtures of experts as projects write them: which rows an expert gets is data."""

from typing import Any

import torch
import torch.nn.functional as F
from blocks import Block, randn
from torch import Tensor, nn


def rows() -> tuple[Tensor, ...]:
    return (randn(7, 6),)


def by_where(experts: Any, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for number, expert in enumerate(experts):
        row, place = torch.where(index == number)
        out[row] += weight[row, place, None] * expert(x[row])
    return out


def by_lists(experts: Any, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    out, masks = torch.zeros_like(x), F.one_hot(index, len(experts)).unbind(-1)
    for mask, expert in zip(masks, experts, strict=True):
        row, place = torch.where(mask)
        rows, places = row.tolist(), place.tolist()
        out.index_add_(0, row, expert(x[None, rows].reshape(-1, x.shape[-1])) * weight[rows, places, None])
    return out


def if_any(experts: Any, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for number, expert in enumerate(experts):
        mask = (index == number).any(-1)
        if mask.any():
            out[mask] += expert(x[mask]) * (weight * (index == number)).sum(-1)[mask].unsqueeze(-1)
    return out


def unless_none(experts: Any, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for number, expert in enumerate(experts):
        if (index == number).sum() == 0:
            continue
        row, place = (index == number).nonzero(as_tuple=True)
        out.index_add_(0, row, expert(x[row]) * weight[row, place].unsqueeze(-1))
    return out


def of_those_hit(experts: Any, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    out, mask = torch.zeros_like(x), F.one_hot(index, len(experts)).permute(2, 1, 0)
    for hit in mask.sum((-1, -2)).greater(0).nonzero():
        place, row = torch.where(mask[hit[0]])
        out.index_add_(0, row, experts[int(hit[0])](x[row]) * weight[row, place, None])
    return out


def named_by_those_hit(experts: Any, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    out, mask = torch.zeros_like(x), F.one_hot(index, len(experts)).permute(2, 1, 0)
    for hit in mask.sum((-1, -2)).greater(0).nonzero():
        place, row = torch.where(mask[hit].squeeze(0))
        out.index_add_(0, row, experts.get_submodule(f"{hit[0]}")(x[row]) * weight[row, place, None])
    return out


def all_of_them(experts: Any, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for number, expert in enumerate(experts):
        out = out + expert(x) * (weight * (index == number)).sum(-1, keepdim=True)
    return out


class Mixture(nn.Module):
    """Layers of experts in residual branches."""

    def __init__(self, route: Any, width: int, inner: int, count: int = 4, layers: int = 1) -> None:
        super().__init__()
        self.into, self.out, self.route = nn.Linear(6, width), nn.Linear(width, 3), route
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.gates = nn.ModuleList(nn.Linear(width, count) for _ in range(layers))
        self.experts = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)) for _ in range(count)
            )
            for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for norm, gate, experts in zip(self.norms, self.gates, self.experts, strict=True):
            weight, index = gate(norm(x)).softmax(-1).topk(2, -1)
            x = x + self.route(experts, norm(x), index, weight / weight.sum(-1, keepdim=True))
        return self.out(x)


class Stacked(nn.Module):
    """Experts in two parameters, as `run` multiplies them."""

    def __init__(self, run: Any, width: int, inner: int, count: int = 4) -> None:
        super().__init__()
        self.into, self.gate, self.out, self.run = (
            nn.Linear(6, width),
            nn.Linear(width, count),
            nn.Linear(width, 3),
            run,
        )
        self.up = nn.Parameter(torch.randn(count, width, inner) / 3)
        self.down = nn.Parameter(torch.randn(count, inner, width) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.out(x + self.run(x, self.gate(x).softmax(-1), self.up, self.down))


def gathered(x: Tensor, shares: Tensor, up: Tensor, down: Tensor) -> Tensor:
    share, index = shares.max(-1)
    hidden = torch.einsum("td,tdh->th", x, up[index]).relu()
    return torch.einsum("th,thd->td", hidden, down[index]) * share[:, None]


def grouped(x: Tensor, shares: Tensor, up: Tensor, down: Tensor) -> Tensor:
    share, index = shares.max(-1)
    index, order = index.sort()
    ends = torch.histc(index.float(), len(up), 0, len(up) - 1).cumsum(0).to(torch.int32)
    hidden = torch._grouped_mm(x[order].float(), up.float(), ends).relu()
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return torch._grouped_mm(hidden, down.float(), ends).to(x)[back] * share[:, None]


def with_capacity(x: Tensor, shares: Tensor, up: Tensor, down: Tensor, most: int = 3) -> Tensor:
    share, index = shares.max(-1)
    chosen = F.one_hot(index, len(up))
    place = chosen.cumsum(0) * chosen - 1
    sent = F.one_hot(place.clamp(0, most - 1), most).to(x) * ((place >= 0) & (place < most))[..., None]
    hidden = torch.einsum("ecd,edh->ech", torch.einsum("tec,td->ecd", sent, x), up).relu()
    return torch.einsum("tec,ecd->td", sent * share[:, None, None], torch.einsum("ech,ehd->ecd", hidden, down))


def experts_choose(x: Tensor, shares: Tensor, up: Tensor, down: Tensor) -> Tensor:
    share, index = shares.t().topk(3, -1)
    result = torch.bmm(torch.bmm(x[index], up).relu(), down) * share[..., None]
    return torch.zeros_like(x).index_add_(0, index.reshape(-1), result.reshape(-1, x.shape[-1]))


ROUTES = (by_where, by_lists, if_any, unless_none, of_those_hit, named_by_those_hit, all_of_them)
ROUTED = {
    **{f"experts {route.__name__}, inner": Block(Mixture, (route, 8, 5), (route, 8, 9), rows) for route in ROUTES},
    **{f"experts {route.__name__}, width": Block(Mixture, (route, 8, 5), (route, 16, 5), rows) for route in ROUTES},
    **{
        f"experts {route.__name__}, deeper": Block(Mixture, (route, 8, 5), (route, 8, 5, 4, 2), rows)
        for route in ROUTES
    },
    "more experts": Block(Mixture, (if_any, 8, 5), (if_any, 8, 5, 8), rows, refused="topk.* goes by position|shares"),
    **{
        f"experts {run.__name__}, {what}": Block(Stacked, (run, 8, 4), (run, *sizes), rows)
        for run in (gathered, with_capacity, experts_choose)
        for what, sizes in (("inner", (8, 8)), ("width", (12, 4)))
    },
}
