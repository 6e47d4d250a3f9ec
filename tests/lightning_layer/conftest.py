"""Lightning's own remarks about tiny runs; every other warning stays an error."""

from pathlib import Path

import pytest

REMARKS = [
    "ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning",  # Lightning 2.6 on torch 2.13
    "ignore:.*does not have many workers",
    "ignore:.*number of training batches",
    "ignore:.*exists and is not empty",
    "ignore:Be aware that when using .ckpt_path.",
    "ignore:.*You're resuming from a checkpoint that ended before the epoch ended",
]


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            for remark in REMARKS:
                item.add_marker(pytest.mark.filterwarnings(remark), append=False)
