"""Models whose posteriors and likelihoods are known in closed form, in float64, with the model's own interface."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from mmseqvae.distributions.gaussian import Gaussian
from mmseqvae.modality import Modality
from mmseqvae.model import MultimodalVAE
from mmseqvae.sequence import Sequence


class LinearEncoder(nn.Module):
    """x = W z + b + N(0, variance I) read backwards: precision diag(W'W) / s, natural mean W'(x - b) / s."""

    def __init__(self, weight: Tensor, bias: Tensor, variance: float) -> None:
        super().__init__()
        self.latent = weight.shape[1]
        self.weight, self.bias, self.variance = nn.Parameter(weight.clone()), nn.Parameter(bias.clone()), variance

    def forward(self, x: Sequence) -> Gaussian:
        frame = x.filled()[:, 0] if x.steps else x.values.new_zeros(len(x), len(self.bias))
        precision = (self.weight**2).sum(0) / self.variance
        mean = (frame - self.bias) @ self.weight / self.variance / precision
        return Gaussian(mean, (-precision.log()).expand_as(mean))


class LinearDecoder(nn.Module):
    """x | z ~ N(W z + b, variance I), one frame an item."""

    writes = "frames"

    def __init__(self, weight: Tensor, bias: Tensor, variance: float) -> None:
        super().__init__()
        self.latent = weight.shape[1]
        self.weight, self.bias, self.variance = weight, bias, variance

    def log_prob(self, z: Tensor, x: Sequence) -> Tensor:
        error = x.values[:, 0] - (z @ self.weight.T + self.bias)
        nats = -0.5 * (error**2 / self.variance + math.log(2 * math.pi * self.variance)).sum(-1)
        return nats[..., None]

    def sample(self, z: Tensor, how: object, generator: torch.Generator | None = None) -> Sequence:
        frame = z @ self.weight.T + self.bias
        return Sequence(frame[:, None], torch.ones(len(z), dtype=torch.long))


def f64(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# Multimodal probabilistic PCA with orthogonal columns, so that the diagonal product of experts is the exact posterior
W = {"one": f64([1, 1], [1, -1], [0, 0]), "two": f64([2, 0], [0, 0.5])}
B = {"one": f64(0.1, -0.2, 0.3), "two": f64(0, 1)}
S = {"one": 0.5, "two": 2.0}
X = {"one": f64(0.7, -0.4, 0.2), "two": f64(-1, 1.5)}
LOG_P = {
    ("one",): -3.4165327412082003,
    ("two",): -3.278110798020426,
    ("one", "two"): -6.467477391877359,
}
LOG_P_TWO_GIVEN_ONE = -3.0509446506691584
ELBO_AT_PRIOR = -10.033119075743391


def ppca() -> MultimodalVAE:
    return MultimodalVAE(
        {
            name: Modality(LinearEncoder(W[name], B[name], S[name]), LinearDecoder(W[name], B[name], S[name]))
            for name in W
        }
    ).double()


def ppca_batch(rows: int = 1, names: tuple[str, ...] = ("one", "two")) -> dict[str, Sequence]:
    """The same observation `rows` times; a modality that is not named is there, but missing."""
    return {
        name: Sequence(X[name].expand(rows, 1, -1), torch.full((rows,), int(name in names), dtype=torch.long))
        for name in W
    }


class FixedEncoder(nn.Module):
    """An expert that says the same whatever it reads."""

    latent = 1

    def __init__(self, mean: float, variance: float) -> None:
        super().__init__()
        self.mean, self.logvar = mean, math.log(variance)

    def forward(self, x: Sequence) -> Gaussian:
        like = x.values.new_zeros(len(x), 1)
        return Gaussian(like + self.mean, like + self.logvar)


# z ~ N(0, 1), x | z ~ N(z, variance 0.5), x = 1
CONJUGATE_LOG_P = -1.4550044205920882


def conjugate(mean: float, variance: float) -> MultimodalVAE:
    """The conjugate model with q = N(mean, variance), reached as a product with the base expert; variance < 1."""
    precision = 1 / variance - 1
    encoder = FixedEncoder(mean / variance / precision, 1 / precision)
    return MultimodalVAE({"x": Modality(encoder, LinearDecoder(f64([1]), f64(0), 0.5))}).double()


def conjugate_at_prior() -> MultimodalVAE:
    """The conjugate model with q = the prior: its encoder reads a view that no batch holds."""
    decoder = LinearDecoder(f64([1]), f64(0), 0.5)
    return MultimodalVAE({"x": Modality(FixedEncoder(0, 1), decoder, reads="absent", writes="x")}).double()


def conjugate_batch(rows: int) -> dict[str, Sequence]:
    return {"x": Sequence(torch.ones(rows, 1, 1, dtype=torch.float64), torch.ones(rows, dtype=torch.long))}


def gauss_hermite(points: int, dimensions: int) -> tuple[Tensor, Tensor]:
    """Nodes [N, dimensions] and weights [N] of expectations under N(0, I)."""
    node, weight = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(points))
    nodes = torch.cartesian_prod(*[node] * dimensions).reshape(-1, dimensions)
    weights = torch.cartesian_prod(*[weight / weight.sum()] * dimensions).reshape(-1, dimensions).prod(-1)
    return nodes, weights


def nodes_instead_of_noise(monkeypatch, nodes: Tensor) -> None:
    """Let every Gaussian's next draw be mean + std * nodes: row by row [N, D], or [K, N, D] for K draws."""

    def rsample(self: Gaussian, n: int | None = None, generator: object = None, noise: float = 1) -> Tensor:
        assert n is None or n == len(nodes)
        return self.mean + self.std * nodes

    monkeypatch.setattr(Gaussian, "rsample", rsample)
