"""Densities fitted to latents by maximum likelihood: mixtures of Gaussians, bent by a flow or read off a context.

The flow is masked autoregressive (Papamakarios et al. 2017; the library zuko). It starts as the identity over a
mixture, so that it begins where a mixture ends: a flow over a single Gaussian fills the holes between far groups.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import zuko
from torch import Tensor, nn
from tqdm.auto import tqdm

from mmseqvae.distributions.gaussian import Distribution, Gaussian, GaussianMixture
from mmseqvae.priors.base import Prior
from mmseqvae.priors.mixtures import fit_mixture

MOMENTS = 256  # draws for the moments of a distribution that has no closed form
BATCH, EPOCHS, PATIENCE = 256, 150, 15


class MixtureFlow(nn.Module):
    """A distribution over latents: a mixture of `components` Gaussians that go through `transforms` layers of a flow.

    context: width of what mixture and flow are read off (Bishop 1994, mixture density networks), 0 for none: a linear
    map of it moves all parts alike, a perceptron changes each. transforms 0 leaves the mixture as it is. Latents and
    contexts are standardised inside (`begin`).
    """

    def __init__(self, latent: int, components: int, context: int = 0, transforms: int = 3, hidden: int = 64) -> None:
        super().__init__()
        self.latent, self.components = latent, components
        size = components * (1 + 2 * latent)
        self.start = nn.Parameter(torch.zeros(size))  # weights, means and log-variances that the context changes
        self.read, self.move = None, None
        if context:
            self.read = nn.Sequential(nn.Linear(context, hidden), nn.ReLU(), nn.Linear(hidden, size))
            self.move = nn.Linear(context, latent)
            _silence(self.read[-1])
        self.flow: nn.Module | None = None
        if transforms:
            self.flow = zuko.flows.MAF(latent, context, transforms, hidden_features=(hidden, hidden)).transform
            for layer in self.flow.modules():
                if isinstance(layer, zuko.nn.MaskedMLP):
                    _silence(layer[-1])  # the identity
        for name, width in (("latent", latent), ("context", context)):
            self.register_buffer(f"{name}_mean", torch.zeros(width))
            self.register_buffer(f"{name}_std", torch.ones(width))
        self.latent_mean: Tensor
        self.latent_std: Tensor
        self.context_mean: Tensor
        self.context_std: Tensor

    def begin(self, z: Tensor, distribution: GaussianMixture, move: LinearMap | None = None) -> None:
        """Standardise by latents z [N, D], and start as `distribution`, a mixture of parts [K, D].

        With a context, `distribution` is that of what the line leaves unexplained: latents minus the line.
        """
        self.latent_mean.copy_(z.mean(0))
        self.latent_std.copy_(_spread(z))
        mean = (distribution.parts.mean - (0 if move else self.latent_mean)) / self.latent_std
        logvar = distribution.parts.logvar - 2 * self.latent_std.log()
        self.start.data.copy_(torch.cat([distribution.log_weights, mean.flatten(), logvar.flatten()]))
        if move is not None and self.move is not None:
            self.context_mean.copy_(move.mean)
            self.context_std.copy_(move.std)
            self.move.weight.data.copy_(move.slope.T / self.latent_std[:, None])
            self.move.bias.data.copy_((move.offset - self.latent_mean) / self.latent_std)

    def distribution(self, context: Tensor | None = None) -> GaussianMixture | FlowDistribution:
        """The distribution over latents without context, or one a row of contexts [..., C]."""
        if context is not None:
            context = (context - self.context_mean) / self.context_std
        if self.flow is not None:
            return FlowDistribution(self, context)
        standard = self.mixture(context)
        mean = standard.parts.mean * self.latent_std + self.latent_mean
        return GaussianMixture(standard.log_weights, Gaussian(mean, standard.parts.logvar + 2 * self.latent_std.log()))

    def mixture(self, context: Tensor | None) -> GaussianMixture:
        """The mixture behind the flow, over standardised latents: parts [K, ..., D]."""
        numbers = self.start if context is None or self.read is None else self.start + self.read(context)
        weights, mean, logvar = numbers.split([self.components, *2 * [self.components * self.latent]], -1)
        mean, logvar = (t.unflatten(-1, (self.components, self.latent)).movedim(-2, 0) for t in (mean, logvar))
        if context is not None and self.move is not None:
            mean = mean + self.move(context)
        return GaussianMixture(weights.movedim(-1, 0), Gaussian(mean, logvar))


@dataclass(frozen=True)
class LinearMap:
    """z ~ offset + ((c - mean) / std) slope, by least squares with a small ridge: slope [C, D], offset [D]."""

    mean: Tensor
    std: Tensor
    slope: Tensor
    offset: Tensor

    @classmethod
    def through(cls, context: Tensor, z: Tensor) -> LinearMap:
        mean, std, offset = context.mean(0), _spread(context), z.mean(0)
        c = ((context - mean) / std).double()
        ridge = 1e-3 * len(c) * torch.eye(c.shape[1], dtype=c.dtype, device=c.device)
        slope = torch.linalg.solve(c.T @ c + ridge, c.T @ (z - offset).double())
        return cls(mean, std, slope.to(z), offset)

    def __call__(self, context: Tensor) -> Tensor:
        """[N, C] -> [N, D]."""
        return self.offset + (context - self.mean) / self.std @ self.slope


@dataclass(frozen=True)
class FlowDistribution:
    """A mixture behind a flow, of standardised contexts [..., C] or of none: it draws, scores and can be indexed."""

    net: MixtureFlow
    context: Tensor | None

    def rsample(self, n: int | None = None, generator: torch.Generator | None = None, noise: float = 1.0) -> Tensor:
        """Draws [..., D] when `n` is None, else [n, ..., D]; noise: of the mixture before it goes through the flow."""
        u = self.net.mixture(self.context).rsample(n, generator, noise)
        return self._transform().inv(u) * self.net.latent_std + self.net.latent_mean

    def log_prob(self, z: Tensor) -> Tensor:
        """Nats, z [..., D] -> [...]."""
        if self.context is not None:
            z = z.expand(*torch.broadcast_shapes(z.shape[:-1], self.context.shape[:-1]), -1)
        u, volume = self._transform().call_and_ladj((z - self.net.latent_mean) / self.net.latent_std)
        return self.net.mixture(self.context).log_prob(u) + volume - self.net.latent_std.log().sum()

    @property
    def mean(self) -> Tensor:
        """Estimated by MOMENTS draws, always the same."""
        return self._draws().mean(0)

    @property
    def variance(self) -> Tensor:
        """Estimated by MOMENTS draws, always the same."""
        return self._draws().var(0)

    def __getitem__(self, index: object) -> FlowDistribution:
        """Index the leading dimensions."""
        return FlowDistribution(self.net, None if self.context is None else self.context[index])  # type: ignore[index]

    def _draws(self) -> Tensor:
        return self.rsample(MOMENTS, torch.Generator(self.net.start.device).manual_seed(0))

    def _transform(self) -> zuko.transforms.ComposedTransform:
        assert self.net.flow is not None
        return self.net.flow(self.context)


class Flow(Prior):
    """A prior fitted to training posteriors: a mixture bent by a flow."""

    def __init__(self, latent: int, components: int) -> None:
        super().__init__()
        self.latent, self.components = latent, components
        self.net = MixtureFlow(latent, components)

    def __str__(self) -> str:
        return f"flow over a mixture of {self.components} fitted to training posteriors"

    def log_prob(self, z: Tensor) -> Tensor:
        return self.net.distribution().log_prob(z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.net.distribution().rsample(n, generator).detach()


def fit_flow(
    z: Tensor, components: int, seed: int = 0, progress: bool = False, valid: Tensor | None = None,
    learnt: Prior | None = None,
) -> Flow:  # fmt: skip
    """Fit a flow to draws z [N, D] from training posteriors: first `fit_mixture`, then gradient steps.

    z may be [S, N, D], several draws from each posterior. It stops where the mean log-density of `valid` [..., N', D],
    draws from posteriors of other items, has been highest; without them every tenth item of z is held out. Raises
    ValueError for too few draws.
    """
    if valid is None:
        held = torch.arange(z.shape[-2], device=z.device) % 10 == 9
        z, valid = z[..., ~held, :], z[..., held, :]
    items, stop = z.shape[-2], valid.shape[-2]
    if items < 2 or not stop:
        raise ValueError(f"a flow needs at least 2 draws to learn from and 1 to stop by, got {items} and {stop}")
    start = fit_mixture(z, components, seed, progress, valid, learnt)
    z, valid = z.flatten(0, -2), valid.flatten(0, -2)
    with seeded(seed):
        flow = Flow(z.shape[-1], len(start.log_weights)).to(z)
    flow.net.begin(z, start.mixture())
    fit_by_likelihood(flow.net, lambda generator: z, valid, seed=seed, progress=progress)
    return flow


@torch.enable_grad()
def fit_by_likelihood(
    net: MixtureFlow,
    draws: Callable[[torch.Generator], Tensor],
    valid: Tensor,
    context: Tensor | None = None,
    valid_context: Tensor | None = None,
    *,
    seed: int = 0,
    progress: bool = False,
    learning_rate: float = 2e-3,
) -> float:
    """Raise the mean log-density of `draws` [N, D], made anew every epoch, until that of `valid` no longer rises.

    context: [N, C] beside the draws, valid_context beside `valid`. The best weights are kept; returns their mean
    log-density of `valid` in nats.
    """
    generator = torch.Generator(valid.device).manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), learning_rate)

    def density(z: Tensor, context: Tensor | None) -> Tensor:
        distribution: Distribution = net.distribution(context)
        return distribution.log_prob(z).mean()

    with torch.no_grad():
        best, kept, since = float(density(valid, valid_context)), copy.deepcopy(net.state_dict()), 0
    for _ in tqdm(range(EPOCHS), desc="fitting a density", unit="epoch", disable=not progress):
        z = draws(generator)
        for rows in torch.randperm(len(z), generator=generator, device=z.device).split(BATCH):
            optimizer.zero_grad()
            (-density(z[rows], None if context is None else context[rows])).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 10.0)
            optimizer.step()
        with torch.no_grad():
            now = float(density(valid, valid_context))
        if now > best:
            best, kept, since = now, copy.deepcopy(net.state_dict()), 0
        else:
            since += 1
            if since >= PATIENCE:
                break
    net.load_state_dict(kept)
    net.requires_grad_(False)
    return best


def _spread(values: Tensor) -> Tensor:
    """Standard deviations [C] of [N, C], not too small to divide by."""
    return values.std(0).clamp(min=1e-3)


def _silence(layer: nn.Module) -> None:
    """Let a last layer answer zero until it has learnt."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The weights of what is built inside depend on the seed, and nothing outside does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
