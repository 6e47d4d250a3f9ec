import torch

from lightning_grow.rl.metrics import EpisodeStatistics


def values(statistics):
    return {name: value.item() for name, value in statistics.compute().items()}


def test_means_cover_the_latest_episodes_and_counts_all():
    statistics = EpisodeStatistics(window=3)
    statistics.update([1.0, 2.0], [10, 20], timesteps=50)
    statistics.update([], [], timesteps=50)
    statistics.update([3.0, 4.0], [30, 40], timesteps=50)
    assert values(statistics) == {"episode_return": 3, "episode_length": 30, "episodes": 4, "timesteps": 150}


def test_there_is_no_mean_before_the_first_episode_has_ended():
    statistics = EpisodeStatistics()
    statistics.update([], [], timesteps=8)
    assert statistics.compute()["episode_return"].isnan()
    assert statistics.compute()["timesteps"] == 8


def test_a_restored_metric_goes_on_as_the_first():
    first, second = EpisodeStatistics(window=2), EpisodeStatistics(window=2)
    first.update([1.0, 2.0], [10, 20], timesteps=5)
    second.restore(first.state())
    for statistics in (first, second):
        statistics.update([7.0], [3], timesteps=5)
    assert values(first) == values(second)


def test_restoring_forgets_what_was_computed_before():
    first, second = EpisodeStatistics(), EpisodeStatistics()
    first.update([1.0], [10], timesteps=5)
    second.update([9.0], [90], timesteps=1)
    assert values(second) != values(first)
    second.restore(first.state())
    assert values(second) == values(first)


def test_a_million_millions_of_steps_are_counted_exactly():
    statistics = EpisodeStatistics()
    statistics.update([], [], timesteps=10**12)
    statistics.update([], [], timesteps=1)
    assert int(statistics.timesteps) == 10**12 + 1


def test_building_on_meta_leaves_real_counters():
    with torch.device("meta"):
        statistics = EpisodeStatistics()
    assert not statistics.returns.is_meta
    assert int(statistics.episodes) == 0
