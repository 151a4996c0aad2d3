"""log p(x | parameters) in nats per step: categorical for tokens; normal, laplace and bernoulli for frames.

A frame likelihood says how many numbers a frame the decoder's last layer must emit (`size`) and turns them into a
log-density and into draws. Nothing here averages or rescales: densities are summed over channels and nothing else.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmseqvae.distributions.gaussian import LOG_2PI, draw
from mmseqvae.sequence import full

SCALES = ("fixed", "learnt", "predicted")
LOGITS = 2**20  # logits at once, 4 MiB;
LOGITS_GPU = 2**26  # on a GPU 256 MiB, since few large kernels are faster there
Size = tuple[int, ...]


class FrameLikelihood(nn.Module):
    """What every frame likelihood offers: `size`, `log_prob`, `sample`, `floor_hits`."""

    channels: int
    size: int

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        """parameters [..., size], x [..., C], broadcastable to them -> nats [...]."""
        raise TypeError(f"{type(self).__name__} must define log_prob")

    def sample(self, parameters: Tensor, noise: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """parameters [..., size] -> draw [..., C]; `noise` 1 is the likelihood itself, 0 its mode."""
        raise TypeError(f"{type(self).__name__} must define sample")

    @property
    def additive(self) -> bool:
        """Whether draws are the parameters plus `deviations` that do not depend on them."""
        return False

    def deviations(
        self, shape: Size, like: Tensor, noise: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """What draws of `shape` [..., C] add to the parameters, like `like` in type and place, where `additive`."""
        raise TypeError(f"{type(self).__name__} must define deviations")

    def floor_hits(self, parameters: Tensor) -> Tensor:
        """Share of channels whose scale sits on its floor, [..., size] -> [...]; 0 where there is no scale."""
        return torch.zeros_like(parameters[..., 0])


class _LocationScale(FrameLikelihood):
    """A symmetric density around a location, with a scale that is fixed, learnt per channel or predicted per step.

    scale: the fixed value, or where a learnt or predicted one starts. floor: no learnt or predicted scale falls below
    it; a log-density is unbounded on constant data without. Raises ValueError for a scale or floor not above 0, a
    floor above the scale, or an unknown `scale_kind`.
    """

    def __init__(self, channels: int, scale_kind: str = "learnt", scale: float = 1.0, floor: float = 1e-2) -> None:
        super().__init__()
        if scale_kind not in SCALES:
            raise ValueError(f"scale_kind must be one of {', '.join(SCALES)}, got {scale_kind!r}")
        if scale <= 0 or (scale_kind != "fixed" and not 0 < floor <= scale):
            raise ValueError(f"need 0 < floor <= scale, got floor {floor} and scale {scale}")
        self.channels, self.scale_kind, self.floor = channels, scale_kind, floor
        self.size = 2 * channels if scale_kind == "predicted" else channels
        self.start = math.log(scale)
        if scale_kind == "learnt":
            self.log_scale = nn.Parameter(torch.full((channels,), self.start))

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """[..., size] -> location [..., C] and log-scale, broadcastable to it, floor applied."""
        location = parameters[..., : self.channels]
        if self.scale_kind == "fixed":
            return location, torch.full_like(location[..., :1], self.start)
        return location, at_least(self._log_scale(parameters), math.log(self.floor))

    def standard(self, like: Tensor, shape: Size, generator: torch.Generator | None) -> Tensor:
        """Draws of `shape` around 0 of scale 1."""
        raise TypeError(f"{type(self).__name__} must define standard")

    def sample(self, parameters: Tensor, noise: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        location, log_scale = self.split(parameters)
        return location + noise * log_scale.exp() * self.standard(location, location.shape, generator)

    @property
    def additive(self) -> bool:
        return self.scale_kind != "predicted"

    def deviations(
        self, shape: Size, like: Tensor, noise: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        _, log_scale = self.split(like.new_zeros(self.channels))
        return noise * log_scale.exp() * self.standard(like, shape, generator)

    def _log_scale(self, parameters: Tensor) -> Tensor:
        if self.scale_kind == "learnt":
            return self.log_scale
        return self.start + parameters[..., self.channels :]

    def floor_hits(self, parameters: Tensor) -> Tensor:
        if self.scale_kind == "fixed":
            return super().floor_hits(parameters)
        hits = (self._log_scale(parameters) <= math.log(self.floor)).to(parameters.dtype)
        return hits.expand(*parameters.shape[:-1], self.channels).mean(-1)


class Normal(_LocationScale):
    """Independent normal channels: log N(x; location, scale^2)."""

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        location, log_scale = self.split(parameters)
        return (-0.5 * LOG_2PI - log_scale - 0.5 * ((x - location) * (-log_scale).exp()).square()).sum(-1)

    def standard(self, like: Tensor, shape: Size, generator: torch.Generator | None) -> Tensor:
        return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


class Laplace(_LocationScale):
    """Independent Laplace channels: log density -|x - location| / scale - log(2 scale)."""

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        location, log_scale = self.split(parameters)
        return (-((x - location) * (-log_scale).exp()).abs() - log_scale - math.log(2)).sum(-1)

    def standard(self, like: Tensor, shape: Size, generator: torch.Generator | None) -> Tensor:
        u = torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype) - 0.5
        # u = -0.5 is drawn once in 2^24 times and has no finite quantile
        return -u.sign() * torch.log1p(-2 * u.abs().clamp(max=0.5 - torch.finfo(u.dtype).eps))


class Bernoulli(FrameLikelihood):
    """Independent binary channels from logits, for piano rolls and other on/off frames."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = self.size = channels

    def log_prob(self, parameters: Tensor, x: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(parameters, x.expand_as(parameters), reduction="none").sum(-1)

    def sample(self, parameters: Tensor, noise: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """Draws from the logits divided by `noise`: a temperature, with the most likely value at 0."""
        if noise == 0:
            return (parameters > 0).to(parameters.dtype)
        u = torch.rand(parameters.shape, generator=generator, device=parameters.device, dtype=parameters.dtype)
        return (u < (parameters / noise).sigmoid()).to(parameters.dtype)


FRAME_LIKELIHOODS: dict[str, type[Any]] = {"normal": Normal, "laplace": Laplace, "bernoulli": Bernoulli}


def categorical_log_prob(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits)[token] in nats: logits [..., V], tokens [...] -> [...]."""
    return -F.cross_entropy(logits.flatten(0, -2), tokens.flatten(), reduction="none").reshape(tokens.shape)


def linear_categorical_log_prob(hidden: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor) -> Tensor:
    """`categorical_log_prob(linear(hidden), tokens)`: hidden [N, H], weight [V, H], bias [V], tokens [N] -> nats [N].

    Pieces of rows go through products, softmax and gradient while their logits are in the processor's cache.
    """
    low = torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else None
    keep = torch.is_grad_enabled() and any(part.requires_grad for part in (hidden, weight, bias))
    return _LinearCategorical.apply(low, keep, hidden, weight, bias, tokens)


class _LinearCategorical(torch.autograd.Function):
    """d log p / d logits = onehot(token) - softmax(logits)."""

    @staticmethod
    def forward(
        ctx: Any, low: torch.dtype | None, keep: bool, hidden: Tensor, weight: Tensor, bias: Tensor, tokens: Tensor
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            hidden, to_logits = hidden.to(weight.dtype), weight.to(low or weight.dtype)
            nats = hidden.new_empty(len(hidden))
            kept = []
            size = max(1, (LOGITS if hidden.device.type == "cpu" else LOGITS_GPU) // len(weight))
            for start in range(0, len(hidden), size):
                rows = slice(start, start + size)
                logits = torch.mm(hidden[rows].to(to_logits.dtype), to_logits.t()).to(weight.dtype).add_(bias)
                total = logits.logsumexp(1)
                nats[rows] = logits.gather(1, tokens[rows, None]).squeeze(1) - total
                kept += [logits, total] if keep else []
        ctx.save_for_backward(hidden, weight, tokens, *kept)
        ctx.size, ctx.low = size, low
        return nats

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, tokens, *kept = ctx.saved_tensors
        kind = ctx.low or weight.dtype
        from_logits = weight.to(kind)
        d_hidden, d_weight, d_bias = torch.empty_like(hidden), torch.zeros_like(weight), weight.new_zeros(len(weight))
        for index, start in enumerate(range(0, len(hidden), ctx.size)):
            logits, total = kept[2 * index : 2 * index + 2]
            rows = slice(start, start + ctx.size)
            here = gradient[rows, None]
            d = torch.sub(logits, total[:, None]).exp_().mul_(-here)
            d.scatter_add_(1, tokens[rows, None], here)
            d_bias += d.sum(0)
            d = d.to(kind)
            d_hidden[rows] = d @ from_logits
            if kind == weight.dtype:
                d_weight.addmm_(d.t(), hidden[rows])
            else:
                d_weight += d.t() @ hidden[rows].to(kind)
        return None, None, d_hidden, d_weight, d_bias, None


def categorical_sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw tokens by inverting the cumulative distribution: logits [N, V] -> [N].

    temperature divides the logits, 0 takes the most likely token; top_k keeps the k most likely tokens; top_p keeps the
    smallest set of most likely tokens whose probability reaches p (Holtzman et al. 2020). top_k is applied first.
    """
    if temperature == 0:
        return logits.argmax(-1)
    return draw(categorical_probabilities(logits, temperature, top_k, top_p), generator)


def categorical_probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """The probabilities [N, V] that `categorical_sample` draws from at a temperature above 0."""
    logits = full(logits)
    if temperature != 1:
        logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.topk(top_k, -1).values[..., -1:]
        logits = torch.where(logits < kth, -torch.inf, logits)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # the mass that stands before a token
        ordered = torch.where(before < top_p, ordered, -torch.inf)
        logits = torch.empty_like(logits).scatter(-1, order, ordered)
    return logits.softmax(-1)


class _AtLeast(torch.autograd.Function):
    """max(x, bound) whose gradient still passes below the bound when a step against it would raise x.

    With a plain clamp a scale that once fell to its floor could never leave it (Balle et al. 2017, section 5).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp(min=bound)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        (gradient,) = gradients
        return torch.where((x >= ctx.bound) | (gradient < 0), gradient, 0), None


def at_least(x: Tensor, bound: float) -> Tensor:
    """max(x, bound), with a gradient that lets x come back from below."""
    return _AtLeast.apply(x, bound) if torch.is_grad_enabled() else x.clamp(min=bound)
