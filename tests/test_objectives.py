"""Objectives against slow and obvious versions in float64, and against models with known answers."""

import math

import pytest
import torch
from exact import (
    ELBO_AT_PRIOR,
    LOG_P,
    B,
    LinearDecoder,
    LinearEncoder,
    S,
    W,
    f64,
    gauss_hermite,
    nodes_instead_of_noise,
    ppca,
    ppca_batch,
)
from torch import Tensor

from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.encoders import FrameEncoder, TokenEncoder
from mmseqvae.likelihoods import Laplace
from mmseqvae.modalities import Modality
from mmseqvae.model import MultimodalVAE
from mmseqvae.objectives import OBJECTIVES, Terms, coordinated, elbo, floored
from mmseqvae.sequence import Sequence

V, C, D = 5, 2, 3
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())


def build() -> MultimodalVAE:
    torch.manual_seed(0)
    frames = FrameDecoder(Laplace(C), D, max_steps=9, reduction=2, hidden=6, inputs=4)
    model = MultimodalVAE(
        {
            "text": Modality(
                TokenEncoder(V, D, embedding=4, hidden=6), TokenDecoder(V, D, end=0, max_steps=6, embedding=4, hidden=6)
            ),
            "audio": Modality(FrameEncoder(C, D, hidden=6), frames),
            "label": Modality(None, TokenDecoder(4, D, end=0, max_steps=2, embedding=4, hidden=6)),
        }
    )
    for encoder in (model.modalities["text"].encoder, model.modalities["audio"].encoder):
        encoder.to_latent.bias.data += torch.linspace(-1, 1, 2 * D)  # experts that differ from the prior
    return model.double().eval()


def batch() -> dict[str, Sequence]:
    """Rows: all there; no audio; no text; only the label; nothing."""
    rng = torch.Generator().manual_seed(7)
    return {
        "text": Sequence(torch.randint(1, V, (5, 5), generator=rng), torch.tensor([4, 2, 0, 0, 0])),
        "audio": Sequence(torch.randn(5, 8, C, generator=rng, dtype=torch.float64), torch.tensor([7, 0, 5, 0, 0])),
        "label": Sequence(torch.tensor([[1, 0]] * 5), torch.tensor([2, 0, 2, 2, 0])),
    }


# The slow and obvious versions: one row, one modality, one dimension at a time


def kl_1d(m1: float, v1: float, m2: float, v2: float) -> float:
    return 0.5 * (math.log(v2 / v1) + (v1 + (m1 - m2) ** 2) / v2 - 1)


class Slow:
    """Everything about a batch by loops; draws come in the order in which the objectives say that they need them."""

    def __init__(self, model: MultimodalVAE, full: dict[str, Sequence]) -> None:
        self.model, self.full, self.rows = model, full, range(len(full["text"]))
        self.readers = ["text", "audio"]
        self.joint = [self.product(i, self.readers) for i in self.rows]
        self.single = {name: [self.product(i, [name]) for i in self.rows] for name in self.readers}

    def there(self, name: str, i: int) -> bool:
        return int(self.full[name].lengths[i]) > 0

    def alone(self, name: str, i: int) -> Sequence:
        x = self.full[name]
        return Sequence(x.values[i : i + 1, : int(x.lengths[i])], x.lengths[i : i + 1])

    def product(self, i: int, names: list[str]) -> list[tuple[float, float]]:
        """(mean, variance) of every dimension."""
        result = []
        for d in range(D):
            precision, natural = 1.0, 0.0
            for name in names:
                if self.there(name, i):
                    expert = self.model.modalities[name].encoder(self.alone(name, i))
                    precision += 1 / expert.variance[0, d].item()
                    natural += expert.mean[0, d].item() / expert.variance[0, d].item()
            result.append((natural / precision, 1 / precision))
        return result

    def draw(self, q: list[list[tuple[float, float]]]) -> Tensor:
        noise = torch.randn(len(q), D, dtype=torch.float64)
        return f64(*[[m + math.sqrt(v) * noise[i, d].item() for d, (m, v) in enumerate(q[i])] for i in self.rows])

    def score(self, name: str, i: int, z: Tensor) -> float:
        if not self.there(name, i):
            return 0.0
        return self.model.modalities[name].decoder.log_prob(z[i : i + 1], self.alone(name, i)).sum().item()

    def kl(self, i: int, q: list, other: list | None = None) -> list[float]:
        return [kl_1d(*q[i][d], *(other[i][d] if other else (0.0, 1.0))) for d in range(D)]


def slow_elbo(model: MultimodalVAE, full: dict[str, Sequence], beta: float, weights: dict[str, float]) -> list[float]:
    slow = Slow(model, full)
    z = slow.draw(slow.joint)
    return [
        sum(weights[name] * slow.score(name, i, z) for name in full) - beta * sum(slow.kl(i, slow.joint))
        for i in slow.rows
    ]


def slow_coordinated(
    model: MultimodalVAE, full: dict[str, Sequence], beta: float, weights: dict[str, float], c: float
) -> list[float]:
    slow = Slow(model, full)
    z = slow.draw(slow.joint)
    alone = {name: slow.draw(slow.single[name]) for name in slow.readers}
    totals = []
    for i in slow.rows:
        total = sum(weights[name] * slow.score(name, i, z) for name in full) - beta * sum(slow.kl(i, slow.joint))
        if slow.there("text", i) and slow.there("audio", i):
            for name in slow.readers:
                total += sum(weights[token] * slow.score(token, i, alone[name]) for token in ("text", "label"))
                total -= c * sum(slow.kl(i, slow.joint, slow.single[name]))
        totals.append(total)
    return totals


WEIGHTS = {"text": 3.0, "audio": 0.5, "label": 2.0}


@pytest.mark.parametrize("beta", [1.0, 0.3])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_elbo_is_the_slow_one(beta: float, weights: dict[str, float] | None) -> None:
    model = build()
    torch.manual_seed(5)
    found = elbo(model, batch(), beta=beta, weights=weights)
    torch.manual_seed(5)
    expected = slow_elbo(model, batch(), beta, weights or dict.fromkeys(WEIGHTS, 1.0))
    assert found.objective.tolist() == pytest.approx(expected, abs=1e-10)
    torch.manual_seed(5)
    plain = slow_elbo(model, batch(), 1.0, dict.fromkeys(WEIGHTS, 1.0))
    assert found.elbo.tolist() == pytest.approx(plain, abs=1e-10)


@pytest.mark.parametrize(("beta", "c"), [(1.0, 1.0), (0.3, 0.5), (1.0, 0.0)])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_coordinated_is_the_slow_one(beta: float, c: float, weights: dict[str, float] | None) -> None:
    model = build()
    torch.manual_seed(5)
    found = coordinated(model, batch(), beta=beta, weights=weights, coordination=c)
    torch.manual_seed(5)
    expected = slow_coordinated(model, batch(), beta, weights or dict.fromkeys(WEIGHTS, 1.0), c)
    assert found.objective.tolist() == pytest.approx(expected, abs=1e-10)
    torch.manual_seed(5)
    plain = slow_elbo(model, batch(), 1.0, dict.fromkeys(WEIGHTS, 1.0))
    assert found.elbo.tolist() == pytest.approx(plain, abs=1e-10)


@every_objective
def test_the_reported_terms_are_the_slow_ones(objective) -> None:
    model, slow = build(), Slow(build(), batch())
    torch.manual_seed(5)
    found: Terms = objective(model, batch(), beta=0.3, weights=WEIGHTS, free_bits=0.2)
    torch.manual_seed(5)
    z = slow.draw(slow.joint)
    for name in batch():
        expected = [slow.score(name, i, z) for i in slow.rows]
        assert found.reconstruction[name].tolist() == pytest.approx(expected, abs=1e-10)
    assert found.kl.tolist() == pytest.approx([sum(slow.kl(i, slow.joint)) for i in slow.rows])
    torch.testing.assert_close(found.elbo, sum(found.reconstruction.values()) - found.kl)
    torch.testing.assert_close(found.means["joint"], f64(*[[m for m, _ in q] for q in slow.joint]))
    for name in slow.readers:
        for i in slow.rows:
            mean, kl = found.means[name][i], found.expert_kl[name][i]
            if slow.there(name, i):
                assert mean.tolist() == pytest.approx([m for m, _ in slow.single[name][i]])
                assert kl.item() == pytest.approx(sum(slow.kl(i, slow.single[name])))
            else:
                assert mean.isnan().all()
                assert kl.isnan()
    assert not any(value.requires_grad for value in (*found.means.values(), *found.expert_kl.values()))
    if found.coordination:
        apart = [sum(slow.kl(i, slow.joint, slow.single["text"])) if i == 0 else 0 for i in slow.rows]
        assert found.coordination["text"].tolist() == pytest.approx(apart)


# Known answers


@pytest.mark.parametrize("names", LOG_P)
def test_the_elbo_of_the_exact_posterior_is_the_likelihood(names: tuple[str, ...], monkeypatch) -> None:
    """For each subset; expectations by quadrature, one row a node, which is exact for a quadratic."""
    nodes, weights = gauss_hermite(3, 2)
    nodes_instead_of_noise(monkeypatch, nodes)
    terms = elbo(ppca(), ppca_batch(len(nodes), names))
    assert (weights * terms.elbo).sum().item() == pytest.approx(LOG_P[names], abs=1e-12)
    torch.testing.assert_close(terms.objective, terms.elbo)


def test_the_elbo_at_the_prior_is_the_known_one(monkeypatch) -> None:
    nodes, weights = gauss_hermite(3, 2)
    nodes_instead_of_noise(monkeypatch, nodes)
    parts = {}
    for name in W:
        how = (W[name], B[name], S[name])
        parts[name] = Modality(LinearEncoder(*how), LinearDecoder(*how), reads="absent", writes=name)
    terms = elbo(MultimodalVAE(parts).double(), ppca_batch(len(nodes)))
    assert (weights * terms.elbo).sum().item() == pytest.approx(ELBO_AT_PRIOR, abs=1e-12)
    assert not terms.kl.any()


def test_the_exact_posterior_is_where_the_elbo_has_no_gradient(monkeypatch) -> None:
    """And nowhere near it: the expected ELBO is largest at the exact encoders."""
    nodes, weights = gauss_hermite(3, 2)
    nodes_instead_of_noise(monkeypatch, nodes)
    model = ppca()

    def value() -> Tensor:
        return (weights * elbo(model, ppca_batch(len(nodes))).elbo).sum()

    best = value()
    encoder = model.modalities["one"].encoder
    gradients = torch.autograd.grad(best, list(model.parameters()))
    assert max(g.abs().max().item() for g in gradients) < 1e-12
    encoder.bias.data += 0.1
    assert value() < best


def test_coordination_of_the_exact_model_is_the_known_kl(monkeypatch) -> None:
    """KL(q(z | x) || q(z | x_m)) from the posteriors of maths: joint (-.0285714, .3365854), (.1428571, .1951220)."""
    joint = [(-0.02857142857142857, 1 / 7), (0.33658536585365856, 8 / 41)]
    alone = {"one": [(0.16, 0.2), (0.32, 0.2)], "two": [(-1 / 3, 1 / 3), (1 / 9, 8 / 9)]}
    terms = coordinated(ppca(), ppca_batch())
    for name, posterior in alone.items():
        expected = sum(kl_1d(*q, *p) for q, p in zip(joint, posterior, strict=True))
        assert terms.coordination[name].item() == pytest.approx(expected, abs=1e-12)


# Free bits and weights


@pytest.mark.parametrize("free_bits", [0.0, 0.1, 0.5, 3.0])
def test_free_bits_are_kingma_s_in_the_mean_over_the_batch(free_bits: float) -> None:
    kl = torch.rand(7, 4, dtype=torch.float64) * f64(0.05, 0.4, 1.5, 5)
    kl.requires_grad_()
    found = floored(kl, free_bits)
    assert found.shape == (7,)
    expected = sum(max(free_bits, kl[:, d].mean().item()) for d in range(4))
    assert found.mean().item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(found.sum(), kl)
    free = torch.tensor([free_bits > 0 and kl[:, d].mean().item() < free_bits for d in range(4)])
    assert torch.equal(gradient, (~free).double().expand(7, 4))


@every_objective
def test_weights_free_bits_and_beta_enter_the_objective_alone(objective) -> None:
    results = []
    for options in ({}, {"weights": WEIGHTS, "beta": 0.1, "free_bits": 2.0}):
        model = build()
        torch.manual_seed(5)
        terms = objective(model, batch(), **options)
        results.append((terms, model.log_prob(batch(), draws=3, generator=torch.Generator().manual_seed(1))))
    (plain, log_prob), (other, other_log_prob) = results
    assert not torch.allclose(plain.objective[:3], other.objective[:3])
    assert torch.equal(plain.elbo, other.elbo)
    assert torch.equal(plain.kl, other.kl)
    for name in plain.reconstruction:
        assert torch.equal(plain.reconstruction[name], other.reconstruction[name])
    assert torch.equal(log_prob, other_log_prob)


# What it costs, and what may be missing


@every_objective
def test_every_encoder_and_every_decoder_runs_once(objective) -> None:
    """In `coordinated` too: the token decoder gets the stacked draws of all posteriors in one call."""
    model = build()
    rows: dict[str, list[int]] = {}

    def watched(key: str, function):
        def call(*args):
            first = args[0]
            rows.setdefault(key, []).append(math.prod(first.shape[:-1]) if isinstance(first, Tensor) else len(first))
            return function(*args)

        return call

    for name, modality in model.modalities.items():
        if modality.encoder is not None:
            modality.encoder.forward = watched(f"encode {name}", modality.encoder.forward)
        modality.decoder.log_prob = watched(f"score {name}", modality.decoder.log_prob)
    objective(model, batch())
    draws = 3 if objective is coordinated else 1
    assert rows == {
        "encode text": [5],
        "encode audio": [5],
        "score text": [5 * draws],
        "score audio": [5],
        "score label": [5 * draws],
    }


@every_objective
def test_rows_do_not_lean_on_one_another(objective) -> None:
    """A row's objective has no gradient in another row's frames (without free bits, whose floor is the batch's)."""
    model, full = build(), batch()
    values = full["audio"].values.clone().requires_grad_()
    terms = objective(model, full | {"audio": Sequence(values, full["audio"].lengths)})
    (gradient,) = torch.autograd.grad(terms.objective[0], values)
    assert gradient[0, :7].abs().sum() > 0
    assert not gradient[1:].any()
    assert not gradient[0, 7:].any()


@every_objective
@pytest.mark.parametrize("views", [("text",), ("audio",), ("label",), ("text", "label")])
def test_batches_without_some_views(objective, views: tuple[str, ...]) -> None:
    """Absent views are missing rows, also where no encoder is left."""
    model = build()
    torch.manual_seed(5)
    found = objective(model, {name: batch()[name] for name in views})
    missing = {name: x if name in views else x.where(torch.zeros(5, dtype=torch.bool)) for name, x in batch().items()}
    torch.manual_seed(5)
    expected = objective(model, missing)
    torch.testing.assert_close(found.elbo, expected.elbo)
    torch.testing.assert_close(found.objective, expected.objective)


def test_coordination_pulls_both_posteriors_together() -> None:
    """Descending on the coordination term alone, the joint and the single posteriors meet."""
    model = build().train()
    encoders = [p for m in ("text", "audio") for p in model.modalities[m].encoder.parameters()]
    optimiser = torch.optim.Adam(encoders, 0.02)
    first = None
    for _ in range(60):
        terms = coordinated(model, batch())
        apart = sum(kl.sum() for kl in terms.coordination.values())
        first = apart.item() if first is None else first
        optimiser.zero_grad()
        apart.backward()
        optimiser.step()
    assert apart.item() < 0.1 * first
