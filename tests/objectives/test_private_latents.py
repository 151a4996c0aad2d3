"""Shared and private latents: both objectives by loops in float64."""

import math

import pytest
import torch
from torch import Tensor

from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.distributions.likelihoods import Laplace
from mmseqvae.encoders import FrameEncoder, TokenEncoder
from mmseqvae.fusion import FUSIONS, moe, poe
from mmseqvae.modality import Modality
from mmseqvae.model import MultimodalVAE
from mmseqvae.objectives import dmvae, importance, mmvae_plus
from mmseqvae.sequence import Sequence
from tests.slow import ONES, WEIGHTS, C, Distribution, V, batch, kl_1d, log_normal, log_sum_exp

SHARED, PRIVATE = 2, {"text": 2, "audio": 1, "label": 0}
COLUMNS = {"text": [0, 1, 2, 3], "audio": [0, 1, 4], "label": [0, 1]}
READERS, D = ("text", "audio"), 5


def build(fusion=poe, private: bool = True) -> MultimodalVAE:
    """Latent: two shared dimensions, two of the text's own, one of the audio's own; the label has none."""
    torch.manual_seed(0)
    own = {name: size if private else 0 for name, size in PRIVATE.items()}
    text, audio, label = (SHARED + own[name] for name in ("text", "audio", "label"))
    frames = FrameDecoder(Laplace(C), audio, max_steps=9, reduction=2, hidden=6, inputs=4)
    modalities = {
        "text": Modality(
            TokenEncoder(V, text, embedding=4, hidden=6),
            TokenDecoder(V, text, end=0, max_steps=6, embedding=4, hidden=6),
            private=own["text"],
        ),
        "audio": Modality(FrameEncoder(C, audio, hidden=6), frames, private=own["audio"]),
        "label": Modality(None, TokenDecoder(4, label, end=0, max_steps=2, embedding=4, hidden=6)),
    }
    for name, shift in (("text", (-1, 1)), ("audio", (1, -1))):
        bias = modalities[name].encoder.to_latent.bias
        bias.data += torch.linspace(*shift, len(bias))
    return MultimodalVAE(modalities, fusion).double().eval()


def there(full: dict[str, Sequence], name: str, i: int) -> bool:
    return int(full[name].lengths[i]) > 0


def alone(full: dict[str, Sequence], name: str, i: int) -> Sequence:
    x = full[name]
    return Sequence(x.values[i : i + 1, : int(x.lengths[i])], x.lengths[i : i + 1])


def expert(model: MultimodalVAE, full: dict[str, Sequence], name: str, i: int) -> dict[int, tuple[float, float]]:
    """{dimension of the whole latent: (mean, variance)} of what one modality says, nothing where it is missing."""
    if not there(full, name, i):
        return {}
    said = model.modalities[name].encoder(alone(full, name, i))
    return {d: (said.mean[0, j].item(), said.variance[0, j].item()) for j, d in enumerate(COLUMNS[name])}


def product(said: list[dict[int, tuple[float, float]]]) -> Distribution:
    """With the base expert, dimension by dimension."""
    distribution = []
    for d in range(D):
        precision = 1 + sum(1 / e[d][1] for e in said if d in e)
        distribution.append((sum(e[d][0] / e[d][1] for e in said if d in e) / precision, 1 / precision))
    return distribution


def scores(model: MultimodalVAE, full: dict[str, Sequence], weights: dict[str, float], i: int, z: Tensor) -> float:
    return sum(
        weights[name] * model.modalities[name].decoder.log_prob(z[None, columns], alone(full, name, i)).sum().item()
        for name, columns in COLUMNS.items()
        if there(full, name, i)
    )


def placed(distribution: Distribution, noise: Tensor) -> Tensor:
    return torch.stack([m + math.sqrt(v) * noise[d] for d, (m, v) in enumerate(distribution)])


cases = pytest.mark.parametrize(("beta", "weights"), [(1.0, None), (0.3, WEIGHTS)])


@cases
def test_dmvae_is_the_slow_one(beta: float, weights: dict[str, float] | None) -> None:
    model, full = build(), batch()
    torch.manual_seed(5)
    found = dmvae(model, full, beta=beta, weights=weights)
    torch.manual_seed(5)
    noise = [torch.randn(5, D, dtype=torch.float64) for _ in range(3)]  # of the joint, the text's and the audio's
    for i in range(5):
        said = {name: expert(model, full, name, i) for name in READERS}
        joint = product(list(said.values()))
        total = 0.0
        for place, source in enumerate([None, *READERS]):
            distribution = joint if source is None else product([said[source]])[:SHARED] + joint[SHARED:]
            if source is None or all(said.values()):
                cost = sum(kl_1d(m, v, 0.0, 1.0) for m, v in distribution)
                total += scores(model, full, weights or ONES, i, placed(distribution, noise[place][i])) - beta * cost
        assert found.objective[i].item() == pytest.approx(total, abs=1e-10)


@cases
@pytest.mark.parametrize(("draws", "tight", "gradient"), [(1, False, "dreg"), (3, True, "iwae")])
def test_mmvae_plus_is_the_slow_one(
    draws: int, tight: bool, gradient: str, beta: float, weights: dict[str, float] | None
) -> None:
    model, full = build(moe), batch()
    options = {"draws": draws, "tight": tight, "gradient": gradient}
    torch.manual_seed(5)
    found = mmvae_plus(model, full, beta=beta, weights=weights, **options)
    torch.manual_seed(5)
    noise = torch.randn(draws, 2, 5, D, dtype=torch.float64)
    standard = (0.0, 1.0)
    for i in range(5):
        said = [expert(model, full, name, i) for name in READERS]
        distributions = [[e.get(d, standard) for d in range(D)] for e in said]
        used = [m for m in range(2) if said[m]] or [0, 1]
        each = []
        for m in used:
            each.append([])
            for k in range(draws):
                z = placed(distributions[m], noise[k, m, i])
                mixture = log_sum_exp([log_normal(z, distributions[n][:SHARED]) - math.log(len(used)) for n in used])
                rest = sum(log_normal(z[d : d + 1], distributions[m][d : d + 1]) for d in range(SHARED, D))
                ratio = log_normal(z, [standard] * D) - mixture - rest
                each[-1].append(scores(model, full, weights or ONES, i, z) + beta * ratio)
        if tight:
            expected = log_sum_exp([w for ws in each for w in ws]) - math.log(draws * len(used))
        else:
            expected = sum(log_sum_exp(ws) - math.log(draws) for ws in each) / len(used)
        assert found.objective[i].item() == pytest.approx(expected, abs=1e-10)
        if beta == 1.0 and draws == 1:
            assert found.elbo[i].item() == pytest.approx(expected, abs=1e-10)


def test_without_private_dimensions_mmvae_plus_is_the_mixture_s_importance_bound() -> None:
    """In the mean: both draw as they please, so means over many rows of one item are compared."""
    full = {name: Sequence(x.values[:1].expand(4000, *x.values.shape[1:]), x.lengths[:1].expand(4000))
            for name, x in batch().items()}  # fmt: skip
    with torch.no_grad():
        found = [f(build(moe, private=False), full, draws=2, tight=True).objective for f in (mmvae_plus, importance)]
    error = (found[0].var() / 4000 + found[1].var() / 4000).sqrt()
    assert (found[0].mean() - found[1].mean()).abs() < 4 * error


@pytest.mark.parametrize("name", ["generalised-poe", "joint", "attention"])
def test_mmvae_plus_refuses_fusions_that_it_would_not_train(name: str) -> None:
    with pytest.raises(ValueError, match="weights of this fusion would stay untrained"):
        mmvae_plus(build(FUSIONS[name](2, D)), batch())


def test_dmvae_refuses_mixtures() -> None:
    with pytest.raises(ValueError, match="dmvae needs a Gaussian posterior"):
        dmvae(build(moe), batch())
