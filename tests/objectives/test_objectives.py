"""What all objectives keep, and what they give on models with known answers; `test_objectives_slow` has the rest."""

import inspect
import math

import pytest
import torch
from torch import Tensor

from mmseqvae.fusion import moe, mopoe, poe, poe_without_base
from mmseqvae.modality import Modality
from mmseqvae.model import MultimodalVAE
from mmseqvae.objectives import (
    OBJECTIVES,
    Terms,
    base,
    chosen,
    coordinated,
    cvae,
    dmvae,
    elbo,
    floored,
    importance,
    mixture,
    mmvae_plus,
    mvtcae,
    telbo,
    weights_by_dimension,
)
from mmseqvae.sequence import Sequence
from tests.exact import (
    ELBO_AT_PRIOR,
    LOG_P,
    LOG_P_TWO_GIVEN_ONE,
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
from tests.slow import WEIGHTS, Slow, batch, build, kl_1d

every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
IMPORTANCE = [f for name, f in OBJECTIVES.items() if name in ("importance", "mmvae_plus")]  # no free bits
ordinary = pytest.mark.parametrize(
    "objective", [f for f in OBJECTIVES.values() if f not in IMPORTANCE], ids=lambda f: f.__name__
)


def free(objective, nats: float) -> dict[str, float]:
    """The free bits that an objective takes."""
    if objective in IMPORTANCE:
        return {}
    return {"free_bits_item": nats} if objective is cvae else {"free_bits": nats}


@ordinary
def test_the_reported_terms_are_the_slow_ones(objective) -> None:
    model, slow = build(), Slow(build(), batch())
    one = {"draws": 1} if "draws" in inspect.signature(objective).parameters else {}
    torch.manual_seed(5)
    found: Terms = objective(model, batch(), beta=0.3, weights=WEIGHTS, **free(objective, 0.2), **one)
    torch.manual_seed(5)
    z = slow.draw(slow.joint)
    for name in batch():
        expected = [slow.score(name, i, z) for i in slow.rows]
        assert found.reconstruction[name].tolist() == pytest.approx(expected, abs=1e-10)
    assert found.kl.tolist() == pytest.approx([slow.kl(slow.joint[i]) for i in slow.rows])
    torch.testing.assert_close(found.elbo, sum(found.reconstruction.values()) - found.kl)
    torch.testing.assert_close(found.means["joint"], f64(*[[m for m, _ in q] for q in slow.joint]))
    for name in slow.readers:
        for i in slow.rows:
            mean, kl = found.means[name][i], found.expert_kl[name][i]
            if slow.there(name, i):
                assert mean.tolist() == pytest.approx([m for m, _ in slow.single[name][i]])
                assert kl.item() == pytest.approx(slow.kl(slow.single[name][i]))
            else:
                assert mean.isnan().all()
                assert kl.isnan()
    assert not any(value.requires_grad for value in (*found.means.values(), *found.expert_kl.values()))
    if objective in (coordinated, OBJECTIVES["jmvae"]):
        apart = [slow.kl(slow.joint[i], slow.single["text"][i]) if i == 0 else 0 for i in slow.rows]
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


def test_total_correlation_is_the_known_one(monkeypatch) -> None:
    nodes, weights = gauss_hermite(3, 2)
    nodes_instead_of_noise(monkeypatch, nodes)
    model = ppca()
    model.fusion = poe_without_base
    terms = mvtcae(model, ppca_batch(len(nodes)), alpha=0.9)
    assert (weights * terms.objective).sum().item() == pytest.approx(-4.012200756062081, abs=1e-12)
    assert terms.kl[0].item() == pytest.approx(0.8969517711, abs=1e-10)
    assert terms.coordination["one"][0].item() == pytest.approx(0.1458502475, abs=1e-10)
    assert terms.coordination["two"][0].item() == pytest.approx(1.7183129094, abs=1e-10)
    assert (weights * sum(terms.reconstruction.values())).sum().item() == pytest.approx(-5.6066039242, abs=1e-10)


def test_the_conditional_bound_of_the_exact_posteriors_is_the_conditional_likelihood(monkeypatch) -> None:
    nodes, weights = gauss_hermite(3, 2)
    nodes_instead_of_noise(monkeypatch, nodes)
    model = ppca()
    exact = (weights * cvae(model, ppca_batch(len(nodes)), given="one").objective).sum().item()
    assert exact == pytest.approx(LOG_P_TWO_GIVEN_ONE, abs=1e-12)
    model.modalities["two"].encoder.bias.data += 0.3  # a bound: whatever q(z | x) is, given the exact q(z | one)
    assert (weights * cvae(model, ppca_batch(len(nodes)), given="one").objective).sum() < LOG_P_TWO_GIVEN_ONE


def test_coordination_of_the_exact_model_is_the_known_kl(monkeypatch) -> None:
    """KL(q(z | x) || q(z | x_m)) from the posteriors of maths: joint (-.0285714, .3365854), (.1428571, .1951220)."""
    joint = [(-0.02857142857142857, 1 / 7), (0.33658536585365856, 8 / 41)]
    alone = {"one": [(0.16, 0.2), (0.32, 0.2)], "two": [(-1 / 3, 1 / 3), (1 / 9, 8 / 9)]}
    terms = coordinated(ppca(), ppca_batch())
    for name, posterior in alone.items():
        expected = sum(kl_1d(*q, *p) for q, p in zip(joint, posterior, strict=True))
        assert terms.coordination[name].item() == pytest.approx(expected, abs=1e-12)


# Free bits and weights


def test_weights_by_dimension_make_sizes_alike() -> None:
    assert weights_by_dimension({"text": 5.0, "audio": 1600.0, "label": 1.0}) == {
        "text": 320.0, "audio": 1.0, "label": 1600.0,
    }  # fmt: skip


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


@pytest.mark.parametrize("how", [{}, {"components": 4}, {"fusion": moe}], ids=["standard", "learnt", "mixture"])
def test_free_bits_an_item_are_a_floor_under_its_kl(how) -> None:
    torch.manual_seed(5)
    plain = mixture(build(**how), batch())
    floor = 0.3  # above some rows and below others
    assert (plain.kl > floor).any()
    torch.manual_seed(5)
    terms = mixture(build(**how), batch(), beta=0.5, free_bits_item=floor)
    cost = [max(floor, kl) for kl in plain.kl.tolist()]
    expected = sum(terms.reconstruction.values()) - 0.5 * f64(*cost)
    torch.testing.assert_close(terms.objective, expected)
    torch.testing.assert_close(terms.elbo, plain.elbo)


@pytest.mark.parametrize(
    ("objective", "options", "how"),
    [
        (elbo, {"free_bits": 0.1}, {"components": 4}),
        (elbo, {"free_bits": 0.1}, {"fusion": moe}),
        (mixture, {"free_bits": 0.1}, {"fusion": moe}),
        (cvae, {"free_bits": 0.1}, {}),
        (importance, {"free_bits": 0.1}, {}),
        (importance, {"free_bits_item": 0.1}, {}),
        (coordinated, {"draws": 2, "free_bits_item": 0.1}, {}),
    ],
)
def test_free_bits_that_mean_nothing_are_refused(objective, options, how) -> None:
    with pytest.raises(ValueError, match="free_bits"):
        objective(build(**how), batch(), **options)


def test_a_loose_mixture_has_free_bits_part_by_part() -> None:
    """KL(q_s || N(0, I)) of every part, a dimension below the floor in its own batch mean costs the floor."""
    model = build(fusion=moe)
    torch.manual_seed(5)
    terms = mixture(model, batch(), tight=False, free_bits=0.3)
    encoded = model.encode(batch())
    shares = encoded.present / encoded.present.sum(0).clamp(min=1)
    cost = sum(
        share * floored(encoded.expert(name).kl(), 0.3) for name, share in zip(encoded.names, shares, strict=True)
    )
    nothing = ~encoded.present.any(0)
    expected = sum(terms.reconstruction.values()) - cost
    torch.testing.assert_close(terms.objective[~nothing], expected[~nothing].double())


@every_objective
def test_weights_free_bits_and_beta_enter_the_objective_alone(objective) -> None:
    results = []
    for options in ({}, {"weights": WEIGHTS, "beta": 0.1, **free(objective, 2.0)}):
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


DRAWS = dict.fromkeys(("elbo", "jmvae", "mvtcae", "cvae", "mixture", "telbo"), (1, 1, 1)) | {
    "mvae": (2, 2, 1),
    "coordinated": (3, 2, 3),
    "importance": (10, 10, 10),
    "dmvae": (3, 3, 3),
    "mmvae_plus": (2, 2, 2),
}  # of text, audio and label; of another objective any number


@every_objective
def test_every_encoder_and_every_decoder_runs_once(objective) -> None:
    """A decoder gets all draws stacked; only in `telbo` those of single modalities come alone, since it is frozen."""
    model = build()
    calls: dict[str, list[int]] = {}

    def watched(key: str, function):
        def call(*args):
            first = args[0]
            calls.setdefault(key, []).append(math.prod(first.shape[:-2]) if isinstance(first, Tensor) else 1)
            return function(*args)

        return call

    for name, modality in model.modalities.items():
        if modality.encoder is not None:
            modality.encoder.forward = watched(f"encode {name}", modality.encoder.forward)
        modality.decoder.log_prob = watched(f"score {name}", modality.decoder.log_prob)
    rows = ((batch()["text"].lengths > 0) & (batch()["audio"].lengths > 0)).nonzero()[:, 0]
    objective(model, {name: x[rows] for name, x in batch().items()})
    again = [1] if objective is telbo else []
    text, audio, label = DRAWS.get(objective.__name__, [calls[f"score {name}"][0] for name in batch()])
    assert calls == {
        "encode text": [1],
        "encode audio": [1],
        "score text": [text, *again],
        "score audio": [audio, *again],
        "score label": [label],
    }


@pytest.mark.parametrize(
    ("objective", "fusion", "options", "decoded"),
    [
        (coordinated, poe, {}, 2 + 1),
        (coordinated, moe, {"draws": 3}, 3 * (2 + 1) + 1),
        (mixture, moe, {}, 2 + 1),
        (mixture, mopoe, {}, 3 + 1),
        (importance, moe, {"draws": 3}, 3 * (2 + 1)),
        (mmvae_plus, moe, {"draws": 3}, 3 * (2 + 1)),
        (dmvae, poe, {}, 1 + 2 + 1),
    ],
)
def test_draws_that_do_not_count_are_not_decoded(objective, fusion, options, decoded: int, monkeypatch) -> None:
    """Audio of a row that has text and of one that has not; nothing else changes when all are decoded together."""
    found = []
    for spare in (base.SPARE, 1.0):
        monkeypatch.setattr(base, "SPARE", spare)
        model, pairs = build(fusion), []
        score = model.modalities["audio"].decoder.log_prob

        def watched(z: Tensor, x: Sequence, *more: Tensor, score=score, pairs=pairs) -> Tensor:
            pairs.append(z[..., 0].numel())
            return score(z, x, *more)

        model.modalities["audio"].decoder.log_prob = watched
        torch.manual_seed(5)
        objective_terms = objective(model, batch(), **options)
        objective_terms.objective.sum().backward()
        found.append((sum(pairs), objective_terms, [p.grad for p in model.parameters() if p.grad is not None]))
    (less, some, gradients), (more, everything, all_gradients) = found
    assert less == decoded < more
    for name in ("objective", "elbo", "kl"):
        torch.testing.assert_close(getattr(some, name), getattr(everything, name))
    torch.testing.assert_close(gradients, all_gradients)


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


def test_a_detached_joint_posterior_learns_nothing_from_coordination() -> None:
    model = build()
    weight = model.modalities["audio"].encoder.to_latent.bias
    encoded = model.encode(batch())
    q = encoded.posterior().detach()
    expected = sum(q.kl(encoded.posterior([name])).sum(-1)[0] for name in encoded.names)
    terms = coordinated(model, batch(), detach=True)
    found = sum(kl.sum() for kl in terms.coordination.values())
    assert found.item() == pytest.approx(expected.item())
    torch.testing.assert_close(torch.autograd.grad(found, weight), torch.autograd.grad(expected, weight))


def test_frozen_decoders_learn_from_the_joint_bound_alone() -> None:
    gradients = {}
    for key, objective, options in (
        ("elbo", elbo, {}), ("frozen", telbo, {}), ("free", telbo, {"frozen": False}),
    ):  # fmt: skip
        model = build()
        torch.manual_seed(5)
        objective(model, batch(), **options).objective.sum().backward()
        text = model.modalities["text"]
        gradients[key] = text.decoder.to_logits.weight.grad, text.encoder.to_latent.weight.grad
        assert all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(gradients["frozen"][0], gradients["elbo"][0])
    assert not torch.allclose(gradients["free"][0], gradients["elbo"][0])
    torch.testing.assert_close(gradients["frozen"][1], gradients["free"][1])
    assert not torch.allclose(gradients["free"][1], gradients["elbo"][1])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("best", {}, "objective must be one of"),
        ("elbo", {"coordination": 1.0}, "elbo has no option 'coordination'; it has none"),
        ("coordinated", {"coordination": -1.0}, "coordination of coordinated must be at least 0 and finite, got -1.0"),
        (
            "coordinated",
            {"self_reconstruction": float("nan")},
            "self_reconstruction of coordinated must be at least 0 and finite, got nan",
        ),
        ("jmvae", {"aplha": 1.0}, "it has alpha"),
        ("coordinated", {"detach": 1}, "detach of coordinated must be of type bool"),
        ("mvae", {"subsets": 1.5}, "subsets of mvae must be of type int"),
        ("cvae", {"given": True}, "given of cvae must be of type str"),
        ("jmvae", {"beta": 1.0}, "no option 'beta'"),
    ],
)
def test_unknown_names_and_options_are_told(name: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chosen(name, options)


def test_what_cannot_be_meant_is_told() -> None:
    for options, message in (({"given": "video"}, "given names"), ({"given": "text, audio, label"}, "nothing is left")):
        with pytest.raises(ValueError, match=message):
            cvae(build(label_reads=True), batch(), **options)
    with pytest.raises(ValueError, match="gradient must be one of"):
        importance(build(), batch(), gradient="best")
    with pytest.raises(ValueError, match="draws must be"):
        importance(build(), batch(), draws=0)
    with pytest.raises(ValueError, match="subsets must be"):
        OBJECTIVES["mvae"](build(), batch(), subsets=-1)
    assert chosen("jmvae", {"alpha": 1}) is OBJECTIVES["jmvae"]
