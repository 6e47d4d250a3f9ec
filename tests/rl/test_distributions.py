import pytest
import torch
from torch import distributions

from lightning_grow.rl.distributions import Categorical, Gaussian, MultiCategorical, SquashedGaussian


class Both:
    """Two choices beside each other, by torch's distribution of each."""

    def __init__(self, logits):
        self.parts = [distributions.Categorical(logits=part) for part in (logits[..., :2], logits[..., 2:])]

    def sample(self):
        return torch.stack([part.sample() for part in self.parts], -1)

    def log_prob(self, actions):
        return self.parts[0].log_prob(actions[..., 0]) + self.parts[1].log_prob(actions[..., 1])

    def entropy(self):
        return self.parts[0].entropy() + self.parts[1].entropy()

    @property
    def mode(self):
        return torch.stack([part.mode for part in self.parts], -1)


def pairs():
    generator = torch.Generator().manual_seed(0)
    logits, mean = (torch.randn(5, 4, 3, generator=generator) for _ in range(2))
    log_std = torch.tensor([-1.0, 0.0, 0.5])
    independent = distributions.Independent(distributions.Normal(mean, log_std.exp()), 1)
    both = MultiCategorical(logits, [2, 1])
    return [
        pytest.param(both, Both(logits), id="several categoricals"),
        pytest.param(Categorical(logits), distributions.Categorical(logits=logits), id="categorical"),
        pytest.param(Gaussian(mean, log_std), independent, id="gaussian"),
    ]


@pytest.mark.parametrize(("ours", "theirs"), pairs())
def test_formulas_are_those_of_torch_distributions(ours, theirs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        actions = theirs.sample()
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.mode, theirs.mode)


def test_gumbel_max_samples_the_softmax():
    logits, num_samples = torch.tensor([0.0, 1.0, -2.0, 3.0]), 20_000
    noise = Categorical.noise((num_samples, 4), torch.Generator().manual_seed(0))
    shares = Categorical(logits.expand(num_samples, 4)).sample(noise).bincount(minlength=4) / num_samples
    # Four standard deviations of a share, at most sqrt(1/4 / 20000).
    torch.testing.assert_close(shares, logits.softmax(0), atol=4 * 0.0036, rtol=0)


def test_gaussian_samples_have_its_moments():
    gaussian = Gaussian(torch.tensor([1.0, -2.0]).expand(20_000, 2), torch.tensor([0.0, 0.7]))
    samples = gaussian.sample(Gaussian.noise((20_000, 2), torch.Generator().manual_seed(0)))
    # Four standard deviations of a mean and of a standard deviation, std / sqrt(n) and std / sqrt(2 n).
    torch.testing.assert_close(samples.mean(0), torch.tensor([1.0, -2.0]), atol=0.06, rtol=0)
    torch.testing.assert_close(samples.std(0).log(), torch.tensor([0.0, 0.7]), atol=0.02, rtol=0)


def test_a_squashed_gaussian_is_torchs():
    mean = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_std = torch.tensor([-1.0, 0.5], dtype=torch.float64)
    ours, normal = SquashedGaussian(mean, log_std), distributions.Normal(mean, log_std.exp())
    theirs = distributions.Independent(distributions.TransformedDistribution(normal, distributions.TanhTransform()), 1)
    actions = ours.sample(torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions.tanh()))
    assert torch.equal(ours.mode, mean)
    # Far out the slope is 0 in floats, and its logarithm still right: 2 log 2 - 2 x, less what is beyond e^-2x.
    far = torch.full((1, 2), 30.0)
    wide = SquashedGaussian(far, torch.zeros(2))
    torch.testing.assert_close(wide.log_prob(far), Gaussian(far, torch.zeros(2)).log_prob(far) + 2 * (60 - 1.3862944))


def test_the_entropy_of_a_squashed_gaussian_is_the_integral():
    mean, log_std = torch.tensor([[0.0], [0.7], [-2.0]], dtype=torch.float64), torch.tensor([-0.5], dtype=torch.float64)
    ours = SquashedGaussian(mean, log_std)
    grid = torch.linspace(-9, 9, 100_001, dtype=torch.float64).view(-1, 1, 1)
    density = Gaussian(mean, log_std).log_prob(grid).exp()
    expected = torch.trapezoid(-density * ours.log_prob(grid), grid.flatten(), dim=0)
    torch.testing.assert_close(ours.entropy(), expected, rtol=0, atol=1e-6)  # 16 nodes
