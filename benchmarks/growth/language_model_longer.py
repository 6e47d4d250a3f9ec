"""The language model with 2.4 times the compute: does growing pay more where there is more to train?

Run `python benchmarks/growth/language_model_longer.py --seeds 5` (by the shorter one's times half an hour of one
core a seed, twice that on a slow machine); it goes on where an earlier call ended.
"""

from dataclasses import replace

from language_model import GROWTHS, RUNS, TASK
from paired import main

NAMES = ("large from scratch", "shallow alone", *reversed(GROWTHS), "narrow alone", "width x2")

if __name__ == "__main__":
    main(
        replace(TASK, name="language_model_longer", budget=9600, every=400),
        {name: RUNS[name] for name in NAMES},
        ("large from scratch", "shallow alone", "depth x2"),
        "validation loss (nats a byte)",
        GROWTHS,
        __doc__,
    )
