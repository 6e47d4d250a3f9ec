"""Resume any PyTorch Lightning run with a bigger network, and lose nothing."""

from lightning_grow.errors import CheckpointError, GrowError, RefusedGrowth, UnknownStrategy
from lightning_grow.plan import GrowthPlan
from lightning_grow.report import TransferReport
from lightning_grow.strategies import Strategy, list_strategies, register_strategy
from lightning_grow.transfer import grow, plan_growth
