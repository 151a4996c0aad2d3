"""A small model with missing rows, and all that objectives say of it by loops: one row, part, dimension at a time."""

import itertools
import math
from collections.abc import Sequence as Many

import torch
from torch import Tensor

from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.distributions.likelihoods import Laplace
from mmseqvae.encoders import FrameEncoder, TokenEncoder
from mmseqvae.fusion import moe, mopoe, poe, poe_without_base
from mmseqvae.modality import Modality
from mmseqvae.model import MultimodalVAE
from mmseqvae.priors.mixtures import LearntMixture
from mmseqvae.sequence import Sequence

V, C, D = 5, 2, 3
Distribution = list[tuple[float, float]]  # (mean, variance) of every dimension
WEIGHTS = {"text": 3.0, "audio": 0.5, "label": 2.0}
ONES = dict.fromkeys(WEIGHTS, 1.0)


def build(fusion=poe, label_reads: bool = False, components: int = 0) -> MultimodalVAE:
    """Text and audio are read and written, the label is written, with `label_reads` also read."""
    torch.manual_seed(0)
    frames = FrameDecoder(Laplace(C), D, max_steps=9, reduction=2, hidden=6, inputs=4)
    label = TokenEncoder(4, D, embedding=4, hidden=6) if label_reads else None
    modalities = {
        "text": Modality(
            TokenEncoder(V, D, embedding=4, hidden=6), TokenDecoder(V, D, end=0, max_steps=6, embedding=4, hidden=6)
        ),
        "audio": Modality(FrameEncoder(C, D, hidden=6), frames),
        "label": Modality(label, TokenDecoder(4, D, end=0, max_steps=2, embedding=4, hidden=6)),
    }
    for name, modality in modalities.items():
        if modality.encoder is not None:  # experts that differ from the prior and from one another
            shift = {"text": (-1, 1), "audio": (1, -1), "label": (0.5, -0.5)}[name]
            modality.encoder.to_latent.bias.data += torch.linspace(*shift, 2 * D)
    prior = LearntMixture(components, D) if components else None
    return MultimodalVAE(modalities, fusion, prior).double().eval()


def batch() -> dict[str, Sequence]:
    """Rows: all there; no audio; no text; only the label; nothing."""
    rng = torch.Generator().manual_seed(7)
    return {
        "text": Sequence(torch.randint(1, V, (5, 5), generator=rng), torch.tensor([4, 2, 0, 0, 0])),
        "audio": Sequence(torch.randn(5, 8, C, generator=rng, dtype=torch.float64), torch.tensor([7, 0, 5, 0, 0])),
        "label": Sequence(torch.tensor([[1, 0]] * 5), torch.tensor([2, 0, 2, 2, 0])),
    }


def kl_1d(m1: float, v1: float, m2: float, v2: float) -> float:
    return 0.5 * (math.log(v2 / v1) + (v1 + (m1 - m2) ** 2) / v2 - 1)


def log_normal(z: Tensor, distribution: Distribution) -> float:
    return sum(-0.5 * (math.log(2 * math.pi * v) + (z[d].item() - m) ** 2 / v) for d, (m, v) in enumerate(distribution))


def log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


class Slow:
    """Everything about a batch by loops; draws come in the order in which the objectives say that they need them."""

    def __init__(self, model: MultimodalVAE, full: dict[str, Sequence]) -> None:
        self.model, self.full, self.rows = model, full, range(len(full["text"]))
        self.readers = model.readable
        self.experts: dict[tuple[str, int], Distribution] = {}
        self.base = model.fusion is not poe_without_base
        self.joint = [self.product(i, self.readers) for i in self.rows]
        self.single = {name: [self.product(i, [name]) for i in self.rows] for name in self.readers}

    def there(self, name: str, i: int) -> bool:
        return int(self.full[name].lengths[i]) > 0

    def count(self, i: int) -> int:
        return sum(self.there(name, i) for name in self.readers)

    def adds(self, names: Many[str], i: int) -> bool:
        """All of them are there, and they are not all that is."""
        return all(self.there(name, i) for name in names) and self.count(i) > len(names)

    def alone(self, name: str, i: int) -> Sequence:
        x = self.full[name]
        return Sequence(x.values[i : i + 1, : int(x.lengths[i])], x.lengths[i : i + 1])

    def expert(self, name: str, i: int) -> Distribution:
        if not self.there(name, i):
            return [(0.0, 1.0)] * D
        if (name, i) not in self.experts:
            expert = self.model.modalities[name].encoder(self.alone(name, i))
            self.experts[name, i] = [(expert.mean[0, d].item(), expert.variance[0, d].item()) for d in range(D)]
        return self.experts[name, i]

    def product(self, i: int, names: Many[str], base: bool | None = None) -> Distribution:
        base = self.base if base is None else base
        names = [name for name in names if self.there(name, i)]
        result = []
        for d in range(D):
            precision, natural = (1.0 if base or not names else 0.0), 0.0
            for name in names:
                mean, variance = self.expert(name, i)[d]
                precision += 1 / variance
                natural += mean / variance
            result.append((natural / precision, 1 / precision))
        return result

    def parts(self) -> list[list[tuple[float, Distribution]]]:
        """For every part of a mixture posterior, for every row: its share, 0 where it is absent, and itself."""
        if self.model.fusion is moe:
            subsets: list[tuple[str, ...]] = [(), *((name,) for name in self.readers)]
        elif self.model.fusion is mopoe:
            keep = itertools.product([False, True], repeat=len(self.readers))
            subsets = [tuple(itertools.compress(self.readers, kept)) for kept in keep]
        else:
            return [[(1.0, distribution) for distribution in self.joint]]

        def used(names: tuple[str, ...], i: int) -> bool:
            return all(self.there(n, i) for n in names) if names else self.count(i) == 0

        shares = [[float(used(names, i)) for i in self.rows] for names in subsets]
        totals = [sum(share[i] for share in shares) for i in self.rows]
        return [
            [
                (shares[s][i] / totals[i], self.product(i, names if shares[s][i] else (), self.model.fusion is mopoe))
                for i in self.rows
            ]
            for s, names in enumerate(subsets)
        ]

    def log_mixture(self, z: Tensor, parts: list[list[tuple[float, Distribution]]], i: int) -> float:
        return log_sum_exp([math.log(part[i][0]) + log_normal(z, part[i][1]) for part in parts if part[i][0]])

    def log_prior(self, z: Tensor) -> float:
        learnt = self.model.learnt
        if learnt is None:
            return log_normal(z, [(0.0, 1.0)] * D)
        weights = learnt.logits.softmax(0)
        return log_sum_exp(
            [
                math.log(weights[k].item())
                + log_normal(z, [(learnt.means[k, d].item(), math.exp(learnt.logvars[k, d].item())) for d in range(D)])
                for k in range(len(weights))
            ]
        )

    def draw(self, q: list[Distribution]) -> Tensor:
        return self.placed(q, torch.randn(len(q), D, dtype=torch.float64))

    def placed(self, q: list[Distribution], noise: Tensor) -> Tensor:
        return torch.tensor(
            [[m + math.sqrt(v) * noise[i, d].item() for d, (m, v) in enumerate(q[i])] for i in self.rows],
            dtype=torch.float64,
        )

    def score(self, name: str, i: int, z: Tensor) -> float:
        if not self.there(name, i):
            return 0.0
        return self.model.modalities[name].decoder.log_prob(z[i : i + 1], self.alone(name, i)).sum().item()

    def scores(self, i: int, z: Tensor, weights: dict[str, float], names: Many[str] | None = None) -> float:
        return sum(weights[name] * self.score(name, i, z) for name in (self.full if names is None else names))

    def kl(self, q: Distribution, other: Distribution | None = None) -> float:
        other = other or [(0.0, 1.0)] * D
        return sum(kl_1d(*q[d], *other[d]) for d in range(D))

    def rate(self, i: int, q: list[Distribution], z: Tensor) -> float:
        """KL to the prior that is trained with: exact for N(0, I), else at the draw."""
        if self.model.learnt is None:
            return self.kl(q[i])
        return log_normal(z[i], q[i]) - self.log_prior(z[i])
