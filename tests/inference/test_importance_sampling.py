"""Mutual information: exact values by quadrature, its limit, and nothing where posteriors do not differ."""

import math

import pytest
import torch

from mmseqvae.distributions.gaussian import Gaussian, GaussianMixture
from mmseqvae.inference.importance_sampling import mutual_information


def test_two_posteriors_one_apart_as_by_quadrature() -> None:
    """N(-1, 1) and N(1, 1), each as likely: the entropy of their mixture less that of either."""
    x = torch.linspace(-12, 12, 200_001, dtype=torch.double)
    density = (torch.exp(-((x - 1) ** 2) / 2) + torch.exp(-((x + 1) ** 2) / 2)) / (2 * math.sqrt(2 * math.pi))
    exact = float(torch.trapezoid(-density * density.log(), x)) - 0.5 * math.log(2 * math.pi * math.e)
    assert exact == pytest.approx(0.3369, abs=1e-3)  # the capacity of a binary channel at a signal to noise ratio of 1
    q = Gaussian(torch.tensor([[-1.0], [1.0]]).double(), torch.zeros(2, 1).double())
    found = mutual_information(q, torch.Generator().manual_seed(0), draws=20_000)
    assert found == pytest.approx(exact, abs=0.01)


def test_limits_and_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = Gaussian(100 * torch.arange(30.0)[:, None].expand(-1, 2), torch.zeros(30, 2))
    assert mutual_information(apart) == pytest.approx(math.log(30), abs=1e-5)  # never more, however far apart
    same = Gaussian(torch.ones(30, 2), torch.ones(30, 2))
    assert mutual_information(same) == pytest.approx(0, abs=1e-6)  # though its KL to N(0, I) is not 0
    some = Gaussian(torch.randn(30, 2), torch.zeros(30, 2))
    whole = mutual_information(some, torch.Generator().manual_seed(1))
    monkeypatch.setattr("mmseqvae.inference.importance_sampling.DENSITIES", 100)
    assert mutual_information(some, torch.Generator().manual_seed(1)) == pytest.approx(whole, abs=1e-6)
    assert 0 < whole < math.log(30)
    with pytest.raises(ValueError, match="no item"):
        mutual_information(Gaussian(torch.zeros(0, 2), torch.zeros(0, 2)))


def test_posteriors_that_are_mixtures() -> None:
    parts = Gaussian(torch.tensor([[[-50.0], [50.0]], [[150.0], [250.0]]]), torch.zeros(2, 2, 1))
    q = GaussianMixture(torch.zeros(2, 2), parts)
    assert mutual_information(q, draws=5) == pytest.approx(math.log(2), abs=1e-5)
