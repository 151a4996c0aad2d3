"""Every objective against its slow and obvious version in float64, with missing rows, weights and beta."""

import inspect
import itertools
import math
from collections.abc import Callable

import pytest
import torch

from mmseqvae.fusion import Fusion, moe, mopoe, poe, poe_without_base
from mmseqvae.objectives import OBJECTIVES
from tests.slow import ONES, WEIGHTS, D, Slow, batch, build, log_sum_exp

TOKENS = ("text", "label")


def elbo(slow: Slow, beta: float, weights: dict[str, float]) -> list[float]:
    z = slow.draw(slow.joint)
    return [slow.scores(i, z, weights) - beta * slow.rate(i, slow.joint, z) for i in slow.rows]


def mvae(slow: Slow, beta: float, weights: dict[str, float], subsets: int = 1) -> list[float]:
    pairs = list(itertools.combinations(slow.readers, 2)) if len(slow.readers) == 3 else []
    if len(pairs) > subsets:
        pairs = [pairs[place] for place in torch.randperm(len(pairs))[:subsets]]
    totals = elbo(slow, beta, weights)
    for names in [*((name,) for name in slow.readers), *pairs]:
        q = [slow.product(i, names) for i in slow.rows]
        z = slow.draw(q)
        for i in slow.rows:
            if slow.adds(names, i):
                totals[i] += slow.scores(i, z, weights, names) - beta * slow.rate(i, q, z)
    return totals


def telbo(slow: Slow, beta: float, weights: dict[str, float], single: float = 1.0, frozen: bool = True) -> list[float]:
    totals = elbo(slow, beta, weights)
    for name in slow.readers:
        z = slow.draw(slow.single[name])
        for i in slow.rows:
            if slow.adds([name], i):
                totals[i] += single * slow.scores(i, z, weights, [name]) - beta * slow.rate(i, slow.single[name], z)
    return totals


def coordinated(
    slow: Slow, beta: float, weights: dict[str, float], coordination: float = 0.3, token_reconstruction: float = 1.0,
    self_reconstruction: float = 0.3, cross_reconstruction: float = 0.0, detach: bool = False, draws: int = 1,
) -> list[float]:  # fmt: skip
    totals = elbo(slow, beta, weights) if draws == 1 else importance(slow, beta, weights, draws)
    for name in slow.readers:
        z = slow.draw(slow.single[name])
        for i in slow.rows:
            if slow.adds([name], i):
                for written in slow.full:
                    if written != name:
                        share = token_reconstruction if written in TOKENS else cross_reconstruction
                    else:
                        share = max(self_reconstruction, token_reconstruction * (written in TOKENS))
                    totals[i] += share * slow.scores(i, z, weights, [written])
                totals[i] -= coordination * slow.kl(slow.joint[i], slow.single[name][i])
    return totals


def jmvae(slow: Slow, beta: float, weights: dict[str, float], alpha: float = 0.1) -> list[float]:
    return coordinated(slow, beta, weights, coordination=alpha, token_reconstruction=0.0, self_reconstruction=0.0)


def crmvae(slow: Slow) -> list[float]:
    """Times the paper's 1 / (M + 1): the joint bound and, of each modality by itself, what it says of itself."""
    totals = elbo(slow, 1.0, ONES)
    for name in slow.readers:
        z = slow.draw(slow.single[name])
        for i in slow.rows:
            if slow.adds([name], i):
                totals[i] += slow.scores(i, z, ONES, [name]) - slow.kl(slow.joint[i], slow.single[name][i])
    return totals


def mvtcae(slow: Slow, beta: float, weights: dict[str, float], alpha: float = 0.9) -> list[float]:
    z, totals = slow.draw(slow.joint), []
    for i in slow.rows:
        m = max(1, slow.count(i))
        views = [slow.kl(slow.joint[i], slow.expert(name, i)) for name in slow.readers if slow.there(name, i)]
        total = (m - alpha) / m * slow.scores(i, z, weights)
        totals.append(total - beta * ((1 - alpha) * slow.rate(i, slow.joint, z) + alpha / m * sum(views)))
    return totals


def cvae(slow: Slow, beta: float, weights: dict[str, float], given: str = "text") -> list[float]:
    names = given.split(", ")
    wanted = [name for name in slow.full if name not in names]
    condition = [slow.product(i, names) for i in slow.rows]
    z, totals = slow.draw(slow.joint), []
    for i in slow.rows:
        counts = all(slow.there(name, i) for name in names) and any(slow.there(name, i) for name in wanted)
        bound = slow.scores(i, z, weights, wanted) - beta * slow.kl(slow.joint[i], condition[i])
        totals.append(bound if counts else 0.0)
    return totals


def mixture(
    slow: Slow, beta: float, weights: dict[str, float], tight: bool = True, stratified: bool = True
) -> list[float]:
    parts = slow.parts()
    if stratified:
        noise = torch.randn(len(parts), len(slow.rows), D, dtype=torch.float64)
        z = [slow.placed([distribution for _, distribution in part], noise[s]) for s, part in enumerate(parts)]
        drawn = [[(part[i][0], z[s]) for s, part in enumerate(parts) if part[i][0]] for i in slow.rows]
    else:
        u, distributions = torch.rand(len(slow.rows), 1, dtype=torch.float64), []
        for i in slow.rows:
            passed, which = 0.0, 0
            while passed + parts[which][i][0] <= u[i].item():
                passed, which = passed + parts[which][i][0], which + 1
            distributions.append(parts[which][i][1])
        once = slow.draw(distributions)
        drawn = [[(1.0, once)] for _ in slow.rows]
    totals = []
    for i in slow.rows:
        if tight:
            cost = sum(share * (slow.log_mixture(z[i], parts, i) - slow.log_prior(z[i])) for share, z in drawn[i])
            cost = slow.rate(i, slow.joint, drawn[i][0][1]) if len(parts) == 1 else cost
        else:
            cost = sum(part[i][0] * slow.kl(part[i][1]) for part in parts)
        totals.append(sum(share * slow.scores(i, z, weights) for share, z in drawn[i]) - beta * cost)
    return totals


def weighted_draws(slow: Slow, log_weight: Callable, parts: list, draws: int, tight: bool) -> list[float]:
    """What `importance` and `mmvae_plus` have in common."""
    noise = torch.randn(draws, len(parts), len(slow.rows), D, dtype=torch.float64)
    totals = []
    for i in slow.rows:
        each: list[tuple[float, list[float]]] = []
        for s, part in enumerate(parts):
            if part[i][0]:
                z = [slow.placed([distribution for _, distribution in part], noise[k, s]) for k in range(draws)]
                each.append((part[i][0], [log_weight(i, s, z[k]) for k in range(draws)]))
        if tight:
            totals.append(log_sum_exp([math.log(share / draws) + w for share, ws in each for w in ws]))
        else:
            totals.append(sum(share * (log_sum_exp(ws) - math.log(draws)) for share, ws in each))
    return totals


def importance(
    slow: Slow, beta: float, weights: dict[str, float], draws: int = 10, gradient: str = "dreg", tight: bool = True
) -> list[float]:
    parts = slow.parts()

    def log_weight(i: int, s: int, z: torch.Tensor) -> float:
        return slow.scores(i, z, weights) + beta * (slow.log_prior(z[i]) - slow.log_mixture(z[i], parts, i))

    return weighted_draws(slow, log_weight, parts, draws, tight)


SLOW = {f.__name__: f for f in (elbo, mvae, telbo, coordinated, jmvae, mvtcae, cvae, mixture, importance)}
CASES: list[tuple[str, dict, dict]] = [
    ("elbo", {}, {}),
    ("elbo", {}, {"fusion": poe_without_base}),
    ("elbo", {}, {"components": 4}),
    ("mvae", {}, {}),
    ("mvae", {"subsets": 0}, {"label_reads": True}),
    ("mvae", {"subsets": 1}, {"label_reads": True, "components": 4}),
    ("mvae", {"subsets": 3}, {"label_reads": True}),
    ("telbo", {}, {"label_reads": True}),
    ("telbo", {"single": 0.3, "frozen": False}, {"components": 4}),
    ("coordinated", {}, {}),
    ("coordinated", {"coordination": 0.5}, {"components": 4}),
    (
        "coordinated",
        {"token_reconstruction": 0.2, "self_reconstruction": 0.7, "cross_reconstruction": 0.1, "detach": True},
        {"label_reads": True},
    ),
    ("coordinated", {"self_reconstruction": 1.5}, {}),
    ("coordinated", {"draws": 3}, {"components": 4}),
    ("jmvae", {}, {}),
    ("jmvae", {"alpha": 2.0}, {"fusion": poe_without_base}),
    ("mvtcae", {}, {"fusion": poe_without_base}),
    ("mvtcae", {"alpha": 0.3}, {"label_reads": True, "components": 4}),
    ("cvae", {}, {}),
    ("cvae", {"given": "audio, label"}, {"label_reads": True}),
    ("mixture", {}, {"components": 4}),
    ("mixture", {}, {"fusion": moe}),
    ("mixture", {"tight": False}, {"fusion": moe, "label_reads": True}),
    ("mixture", {}, {"fusion": mopoe, "label_reads": True, "components": 4}),
    ("mixture", {"tight": False, "stratified": False}, {"fusion": mopoe, "label_reads": True}),
    ("mixture", {"stratified": False}, {"fusion": moe}),
    ("importance", {"draws": 3}, {}),
    ("importance", {"draws": 3}, {"fusion": moe, "label_reads": True}),
    ("importance", {"draws": 3, "tight": False, "gradient": "iwae"}, {"fusion": mopoe, "components": 4}),
]
cases = pytest.mark.parametrize(("name", "options", "how"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])


@cases
@pytest.mark.parametrize(("beta", "weights"), [(1.0, None), (0.3, WEIGHTS)])
def test_the_objective_is_the_slow_one(
    name: str, options: dict, how: dict, beta: float, weights: dict[str, float] | None
) -> None:
    model = build(**how)
    torch.manual_seed(5)
    found = OBJECTIVES[name](model, batch(), beta=beta, weights=weights, **options)
    torch.manual_seed(5)
    expected = SLOW[name](Slow(model, batch()), beta, weights or ONES, **options)
    assert found.objective.tolist() == pytest.approx(expected, abs=1e-10)


def test_crmvae_is_a_case_of_the_default() -> None:
    model = build(label_reads=True)
    torch.manual_seed(5)
    found = OBJECTIVES["coordinated"](
        model, batch(), token_reconstruction=0.0, self_reconstruction=1.0, coordination=1.0
    )
    torch.manual_seed(5)
    assert found.objective.tolist() == pytest.approx(crmvae(Slow(model, batch())), abs=1e-10)


def test_no_objective_is_left_out() -> None:
    assert set(SLOW) == set(OBJECTIVES) - {"dmvae", "mmvae_plus"}  # which have a file of their own
    for name, function in SLOW.items():
        assert set(_options(OBJECTIVES[name])) == set(_options(function)), name
    turned_on = {(name, option) for name, options, _ in CASES for option in options}
    assert turned_on == {(name, option) for name in SLOW for option in _options(OBJECTIVES[name])}


def _options(function: Callable) -> list[str]:
    names = inspect.signature(function).parameters
    return [n for n in names if n not in ("model", "batch", "slow", "beta", "free_bits", "free_bits_item", "weights")]


MIXTURES = ("elbo", "mixture", "importance", "mmvae_plus", "coordinated")  # whose gradients pass through mixtures, too


@pytest.mark.parametrize(
    ("name", "fusion"), [*((name, poe) for name in OBJECTIVES), *itertools.product(MIXTURES, (moe, mopoe))]
)
def test_gradients_are_those_of_differences(name: str, fusion: Fusion) -> None:
    """Of what an encoder and a decoder end with, at the same draws."""
    own = {"gradient": "iwae"}  # the bound's
    options = {"importance": own, "mmvae_plus": own, "telbo": {"frozen": False}}
    model = build(fusion)

    def value() -> torch.Tensor:
        torch.manual_seed(5)
        return OBJECTIVES[name](model, batch(), beta=0.7, **options.get(name, {})).objective.sum()

    text = model.modalities["text"]
    for weight in (text.encoder.to_latent.bias, text.decoder.to_logits.bias):
        (gradient,) = torch.autograd.grad(value(), weight, allow_unused=True)
        gradient = torch.zeros_like(weight) if gradient is None else gradient
        for place in range(len(weight)):
            ends = []
            for step in (1e-5, -1e-5):
                weight.data[place] += step
                ends.append(value().item())
                weight.data[place] -= step
            assert gradient[place].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-6)
