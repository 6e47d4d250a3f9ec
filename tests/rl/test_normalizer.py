import torch

from lightning_grow.rl.normalizer import ObservationNormalizer


def test_moments_merged_batch_by_batch_are_those_of_all_data():
    data = torch.randn(300, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 7
    normalizer = ObservationNormalizer(5).double()
    for batch in data.split([1, 99, 150, 50]):
        normalizer.update(batch.unflatten(0, (1, -1)))
    torch.testing.assert_close(normalizer.mean, data.mean(0))
    torch.testing.assert_close(normalizer.var, data.var(0, correction=0))
    assert normalizer.count.tolist() == [300] * 5


def test_normalised_data_has_mean_0_and_variance_1():
    data = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * 3 + 7
    normalizer = ObservationNormalizer(3)
    normalizer.update(data)
    torch.testing.assert_close(normalizer(data).mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalizer(data).var(0, correction=0), torch.ones(3))


def test_a_feature_never_seen_passes_and_starts_its_own_statistics():
    normalizer = ObservationNormalizer(2)
    normalizer.update(torch.tensor([[1.0, 5.0], [3.0, 9.0]]))
    normalizer.count[1], normalizer.mean[1], normalizer.var[1] = 0, 0, 1
    assert normalizer(torch.tensor([3.0, 0.25])).tolist() == [1.0, 0.25]
    normalizer.update(torch.tensor([[2.0, 10.0], [2.0, 20.0]]))
    assert normalizer.mean.tolist() == [2.0, 15.0]
    assert normalizer.var.tolist() == [0.5, 25.0]


def test_outliers_are_clipped():
    normalizer = ObservationNormalizer(1, clip=5.0)
    normalizer.update(torch.tensor([[0.0], [2.0]]))
    assert normalizer(torch.tensor([[1e9], [-1e9]])).flatten().tolist() == [5.0, -5.0]


def test_statistics_travel_in_the_state_dict():
    normalizer, other = ObservationNormalizer(2), ObservationNormalizer(2)
    normalizer.update(torch.randn(9, 2, generator=torch.Generator().manual_seed(0)))
    other.load_state_dict(normalizer.state_dict())
    observations = torch.tensor([[0.3, -0.7]])
    assert torch.equal(normalizer(observations), other(observations))
