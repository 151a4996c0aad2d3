"""Scores of forecasts against their definitions, and what one gets without a model."""

import numpy as np
import pytest
import torch
from scipy import stats

from mmseqvae.evaluation.forecast_metrics import crps, last_value, mean_squared_error, pooled, scores, straight_line
from mmseqvae.inference.forecasting import Draws
from mmseqvae.sequence import Sequence


def test_crps_is_its_definition_and_that_of_a_normal() -> None:
    samples, truth = torch.randn(40, 3, 2).double(), torch.randn(3, 2).double()
    apart = (samples[:, None] - samples[None]).abs().mean((0, 1))
    torch.testing.assert_close(crps(samples, truth), (samples - truth).abs().mean(0) - apart / 2)
    many = torch.randn(200_000, 1).double()
    x = 0.7  # Gneiting & Raftery 2007, section 4.2, of N(0, 1)
    exact = x * (2 * stats.norm.cdf(x) - 1) + 2 * stats.norm.pdf(x) - 1 / np.sqrt(np.pi)
    assert float(crps(many, torch.tensor([x]).double())) == pytest.approx(exact, abs=0.01)


def test_coverage_and_width_of_the_law_itself() -> None:
    """Truth and draws from one distribution N(m, 4): 80 % and 95 % of it inside, and the widths of a normal."""
    truth, samples = 2 * torch.randn(500, 40, 1), 2 * torch.randn(400, 500, 40, 1)
    where = torch.rand(500, 40) < 0.5
    found = scores(Draws(samples), truth, where)
    assert found["steps"] == int(where.sum())
    for level, sigmas in (("0.8", 1.2816), ("0.95", 1.96)):
        assert found["coverage"][level] == pytest.approx(float(level), abs=0.02)
        assert found["width"][level] == pytest.approx(4 * sigmas, rel=0.03)
    assert found["mse"] == pytest.approx(4, rel=0.05)
    clean = scores(Draws(samples), truth, where, torch.zeros_like(truth))
    assert clean["mse"] == pytest.approx(4 / 400, rel=0.1)
    assert clean["coverage"] == found["coverage"]
    assert scores(Draws(samples), truth, where & False)["coverage"] is None


def test_without_a_model() -> None:
    values = torch.tensor([9.0, 2, 9, 9, 8, 9, 9, 9])[None, :, None]
    x = Sequence(values, torch.tensor([8]), torch.tensor([[0, 1, 0, 0, 1, 0, 0, 0]]).bool())
    assert last_value(x).flatten().tolist() == [2, 2, 2, 2, 8, 8, 8, 8]
    np.testing.assert_allclose(straight_line(x).flatten(), [0, 2, 4, 6, 8, 10, 12, 14], atol=1e-5)
    one = Sequence(values, torch.tensor([8]), torch.tensor([[0, 1, 0, 0, 0, 0, 0, 0]]).bool())
    assert straight_line(one).flatten().tolist() == 8 * [2]
    none = Sequence(values, torch.tensor([8]), torch.zeros(1, 8).bool())
    assert last_value(none).flatten().tolist() == 8 * [0]


def test_pooled_figures_weigh_steps() -> None:
    rows = [{"steps": 1, "mse": 4.0, "coverage": {"0.8": 1.0}}, {"steps": 3, "mse": 0.0, "coverage": {"0.8": 0.0}}]
    rows.append({"steps": 0, "mse": None, "coverage": None})
    assert pooled(rows) == {"steps": 4, "mse": 1.0, "coverage": {"0.8": 0.25}}
    assert mean_squared_error(torch.ones(1, 2, 1), torch.zeros(1, 2, 1), torch.tensor([[True, False]])) == 1
