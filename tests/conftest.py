"""What every test shares."""

import os

import torch
from hypothesis import settings

# Small networks: one thread is as fast, does not fight xdist's workers, and sums in one order.
torch.set_num_threads(1)

# The first example of a test pays for torch's lazy imports, so a deadline would be about the machine.
settings.register_profile("repeatable", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("repeatable")
