import copy
import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.decoding import FrameSampling, TokenSampling
from mmseqvae.distributions.likelihoods import Bernoulli, FrameLikelihood, Laplace, Normal
from mmseqvae.rnn.layer import CELLS
from mmseqvae.sequence import Sequence
from tests.exact import f64

V, D, C, LONGEST = 3, 2, 2, 7
every_kind = pytest.mark.parametrize("kind", CELLS)
every_reduction = pytest.mark.parametrize("r", [1, 2, 3])  # LONGEST is no multiple of 2 or 3


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uneven(decoder: nn.Module) -> nn.Module:
    """Larger weights, so that all depends on the past and the latent; but no probability close to 0 or 1."""
    for parameter in decoder.parameters():
        parameter.data = 1.5 * parameter.data + 0.1 * torch.randn_like(parameter.data)
    last = decoder.to_logits if isinstance(decoder, TokenDecoder) else decoder.to_end
    last.weight.data /= 2
    last.bias.data = torch.zeros_like(last.bias)
    if isinstance(decoder, FrameDecoder):
        last.bias.data[0] = 1.5
    return decoder.double().eval()


def go_on(decoder: FrameDecoder) -> FrameDecoder:
    """Only the hard limit ends a sequence, and at its very last frame."""
    decoder.to_end.bias.data = f64(*[1000.0, *(100.0 * k for k in range(1, decoder.reduction + 1))])
    return decoder


def token_decoder(kind: str = "gru", max_steps: int = 4, **options: float) -> TokenDecoder:
    return uneven(TokenDecoder(V, D, end=0, max_steps=max_steps, embedding=4, hidden=5, kind=kind, layers=2, **options))


def frame_decoder(
    r: int = 1, kind: str = "gru", likelihood: FrameLikelihood | None = None, max_steps: int = LONGEST, **options: float
) -> FrameDecoder:
    likelihood = likelihood or Laplace(C, "predicted", floor=0.1)
    sizes = {"hidden": 5, "inputs": 4}
    return uneven(FrameDecoder(likelihood, D, max_steps=max_steps, reduction=r, kind=kind, **sizes, **options))


def latent(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, D, generator=seeded(seed), dtype=torch.float64)


def tokens_of(strings: list[tuple[int, ...]]) -> Sequence:
    return Sequence.from_list([torch.tensor(s) for s in strings])


def all_strings(max_steps: int) -> list[tuple[int, ...]]:
    """Every string over 0..V-1 that ends with its only 0, up to `max_steps` tokens."""
    return [(*s, 0) for n in range(max_steps) for s in itertools.product(range(1, V), repeat=n)]


# Distributions


@every_kind
def test_probabilities_of_all_strings_sum_to_one(kind: str) -> None:
    decoder, strings = token_decoder(kind), all_strings(4)
    x = tokens_of(strings)
    for z in latent(3):
        p = x.sum_steps(decoder.log_prob(z.expand(len(x), -1), x)).exp()
        assert p.sum().item() == pytest.approx(1, abs=1e-12)
        assert p.max() < 0.9  # not a distribution that is easy to get right
        assert p[-1] > 1e-6


def law_over_lengths(decoder: FrameDecoder, z: Tensor, stream: Tensor) -> Tensor:
    """P(length 1), ..., P(length LONGEST) along one `stream` of frames [LONGEST, C], by teacher-forced likelihoods.

    log p(frames, end) of each prefix as an item of its own, less the frames' log-density.
    """
    prefixes = Sequence.from_list([stream[: n + 1] for n in range(len(stream))])
    z = z.expand(len(prefixes), -1)
    hidden = decoder.hidden(z, prefixes)
    parameters = decoder.to_frames(hidden).reshape(len(prefixes), -1, decoder.likelihood.size)[:, : prefixes.steps]
    frames = prefixes.sum_steps(decoder.likelihood.log_prob(parameters, prefixes.filled()))
    return (prefixes.sum_steps(decoder.log_prob(z, prefixes)) - frames).exp()


@every_kind
@every_reduction
def test_probabilities_of_all_lengths_sum_to_one(r: int, kind: str) -> None:
    decoder = frame_decoder(r, kind)
    for z in latent(3):
        p = law_over_lengths(decoder, z, torch.randn(LONGEST, C, dtype=torch.float64))
        assert p.sum().item() == pytest.approx(1, abs=1e-12)
        assert p.min() > 1e-6


@every_reduction
def test_a_lower_limit_is_a_law_too(r: int) -> None:
    decoder = frame_decoder(r)
    for limit in range(1, LONGEST + 1):
        going, total = 1.0, 0.0
        for j in range(math.ceil(limit / r)):
            p = decoder.end_log_prob(torch.randn(5, dtype=torch.float64), torch.tensor(j), limit).exp()
            total += going * p[1:].sum().item()
            going *= p[0].item()
            assert not p[1 + max(0, limit - j * r) :].any()
        assert going == 0
        assert total == pytest.approx(1)


def test_uniform_decoder_costs_the_logarithm_of_the_vocabulary_a_token() -> None:
    decoder = token_decoder(max_steps=9)
    for parameter in decoder.to_logits.parameters():
        parameter.data.zero_()
    x = tokens_of([(1, 2, 1, 0), (0,), (2,) * 8 + (0,)])
    nats = x.sum_steps(decoder.log_prob(latent(3), x))
    assert nats.tolist() == pytest.approx([-4 * math.log(V), -math.log(V), -8 * math.log(V)])  # the last end is certain


def test_a_string_that_goes_on_at_the_limit_is_impossible() -> None:
    x = tokens_of([(1, 2, 1, 2)])
    nats = token_decoder(max_steps=4).log_prob(latent(1), x)
    assert nats[0, :3].isfinite().all()
    assert nats[0, 3] == -torch.inf


# Free running fed the truth is teacher forcing


@every_kind
def test_token_steps_fed_the_truth_are_teacher_forced(kind: str) -> None:
    decoder, z = token_decoder(kind, max_steps=6), latent(3)
    x = Sequence(torch.tensor([[1, 2, 2, 1, 0], [2, 0, 1, 1, 1], [2, 2, 1, 2, 0]]), torch.tensor([5, 2, 5]))
    forced = decoder.log_prob(z, x)
    state, previous = decoder.net.begin(z), torch.full((3,), decoder.start_token)
    for t in range(x.steps):
        logits, state = decoder.step(z, previous, state)
        previous = x.values[:, t]
        stepped = logits.log_softmax(-1).gather(1, previous[:, None]).squeeze(1)
        torch.testing.assert_close(torch.where(t < x.lengths, stepped, 0), forced[:, t])


@every_kind
@every_reduction
@pytest.mark.parametrize("likelihood", [Normal(C), Laplace(C, "predicted", floor=0.1), Bernoulli(C)])
def test_frame_steps_fed_the_truth_are_teacher_forced(r: int, kind: str, likelihood: FrameLikelihood) -> None:
    decoder, z = frame_decoder(r, kind, likelihood), latent(4)
    x = Sequence(torch.rand(4, 6, C, dtype=torch.float64), torch.tensor([6, 1, 5, 2]))
    forced = decoder.log_prob(z, x)
    state, block = decoder.net.begin(z), decoder.start.expand(4, -1)
    for j in range(math.ceil(x.steps / r)):
        hidden, state = decoder.step(z, block, state)
        here = slice(j * r, min(x.steps, (j + 1) * r))
        frames = x.values[:, here]
        block = nn.functional.pad(frames, (0, 0, 0, r - frames.shape[1])).flatten(1)
        parameters = decoder.to_frames(hidden).reshape(4, r, -1)[:, : frames.shape[1]]
        stepped = decoder.likelihood.log_prob(parameters, frames)
        end = decoder.end_log_prob(hidden, torch.tensor(j), LONGEST)
        for i, n in enumerate(x.lengths.tolist()):
            left = n - j * r
            stepped[i, 0] += end[i, left if left <= r else 0] if left > 0 else 0
        torch.testing.assert_close(torch.where(x.mask[:, here], stepped, 0), forced[:, here])


# Draws


def agrees(counts: Tensor, expected: Tensor) -> bool:
    """A chi-square test at 1 %, cells that expect fewer than 5 thrown together."""
    common = expected > 5
    assert common.sum() >= 3
    observed, wanted = [*counts[common].tolist()], [*expected[common].tolist()]
    if not common.all():
        observed.append(counts[~common].sum().item())
        wanted.append(expected[~common].sum().item())
    return stats.chisquare(observed, wanted).pvalue > 0.01


def test_strings_are_drawn_with_their_probability() -> None:
    decoder, strings, n = token_decoder(), all_strings(4), 20_000
    z = latent(1)
    x = tokens_of(strings)
    p = x.sum_steps(decoder.log_prob(z.expand(len(x), -1), x)).exp().detach()
    drawn = decoder.sample(z.expand(n, -1), TokenSampling(temperature=1.0), seeded())
    counts = dict.fromkeys(strings, 0)
    for row in drawn.items():
        counts[tuple(row.tolist())] += 1  # a string outside the distribution is a KeyError
    assert agrees(torch.tensor([counts[s] for s in strings]), n * p)


def test_what_no_draw_begins_with_may_stand_behind_it() -> None:
    decoder, z = token_decoder(), latent(1)
    barred = copy.deepcopy(decoder)
    barred.never_first = [decoder.end, 2]
    free, kept = (
        d.sample(z.expand(3_000, -1), TokenSampling(temperature=1.0), seeded()).values for d in (decoder, barred)
    )
    assert {decoder.end, 2} <= set(free[:, 0].tolist())
    assert not {decoder.end, 2} & set(kept[:, 0].tolist())
    assert {decoder.end, 2} <= set(kept[:, 1].tolist())
    hidden = Sequence(torch.zeros(500, 3, dtype=torch.long), torch.full((500,), 3), torch.zeros(500, 3).bool())
    completed = barred.complete(z.expand(500, -1), hidden, TokenSampling(temperature=1.0), seeded())
    assert not {decoder.end, 2} & set(completed[:, 0].tolist())
    with pytest.raises(ValueError, match="leaves none of 3 tokens"):
        TokenDecoder(3, 2, end=0, max_steps=2, never_first=(0, 1, 2))


def test_greedy_tokens_are_the_most_likely_step_by_step() -> None:
    decoder, z = token_decoder(max_steps=6), latent(8)
    drawn = decoder.sample(z, TokenSampling())
    assert torch.equal(drawn.values, decoder.sample(z, TokenSampling(temperature=1.0, top_k=1)).values)
    for i, row in enumerate(drawn.items()):
        for t in range(len(row)):
            scores = []
            for token in range(V):
                alternative = torch.cat([row[:t], torch.tensor([token])])
                x = Sequence(alternative[None], torch.tensor([t + 1]))
                scores.append(decoder.log_prob(z[i : i + 1], x)[0, t].item())
            assert scores.index(max(scores)) == row[t]


@pytest.mark.parametrize("limit", [1, 3, 99])
def test_token_draws_end_with_the_end_token_at_the_limit_at_latest(limit: int) -> None:
    decoder = token_decoder(max_steps=5)
    decoder.to_logits.bias.data[0] -= 2  # long strings
    drawn = decoder.sample(latent(200), TokenSampling(temperature=1.0, max_steps=limit), seeded())
    assert int(drawn.lengths.max()) == min(limit, 5)
    for row in drawn.items():
        assert row[-1] == 0
        assert (row[:-1] != 0).all()


def deterministic_stream(decoder: FrameDecoder, z: Tensor) -> Tensor:
    """The frames [LONGEST, C] of a latent [D] at noise 0, stepped by hand without any end."""
    z = z[None]
    state, block, blocks = decoder.net.begin(z), decoder.start[None], []
    for _ in range(math.ceil(LONGEST / decoder.reduction)):
        hidden, state = decoder.step(z, block, state)
        parameters = decoder.to_frames(hidden).reshape(decoder.reduction, -1)
        block = parameters[:, :C].reshape(1, -1)  # the location
        blocks.append(block.reshape(-1, C))
    return torch.cat(blocks)[:LONGEST].detach()


@every_reduction
def test_noise_zero_is_deterministic_and_follows_the_mode(r: int) -> None:
    decoder, z = frame_decoder(r), latent(5)
    a, b = (decoder.sample(z, FrameSampling(noise=0.0), seeded(seed)) for seed in (1, 2))
    assert torch.equal(a.values, b.values)
    assert torch.equal(a.lengths, b.lengths)
    for row, latent_row in zip(a.items(), z, strict=True):
        torch.testing.assert_close(row, deterministic_stream(decoder, latent_row)[: len(row)])


@every_reduction
def test_drawn_ends_follow_the_law(r: int) -> None:
    decoder, n = frame_decoder(r), 5_000
    z = latent(1, seed=r)[0]
    distribution = law_over_lengths(decoder, z, deterministic_stream(decoder, z)).detach()
    drawn = decoder.sample(z.expand(n, -1), FrameSampling(noise=0.0, end="draw"), seeded())
    counts = torch.bincount(drawn.lengths, minlength=LONGEST + 1)
    assert counts[0] == 0
    assert agrees(counts[1:], n * distribution)


@every_reduction
def test_the_median_end_is_where_half_of_the_law_has_ended(r: int) -> None:
    decoder = frame_decoder(r)
    seen = set()
    for z in latent(25):
        distribution = law_over_lengths(decoder, z, deterministic_stream(decoder, z))
        median = int((distribution.cumsum(0) < 0.5).sum()) + 1
        drawn = decoder.sample(z[None], FrameSampling(noise=0.0))
        assert drawn.lengths.tolist() == [median]
        assert drawn.steps == median
        seen.add(median)
    assert len(seen) > 2


@every_reduction
def test_frame_draws_keep_to_a_lower_limit(r: int) -> None:
    decoder = go_on(frame_decoder(r))
    for end in ("draw", "median"):
        drawn = decoder.sample(latent(20), FrameSampling(max_steps=4, end=end), seeded())
        assert drawn.lengths.tolist() == [4] * 20
        assert decoder.sample(latent(3), FrameSampling(max_steps=99, end=end)).lengths.tolist() == [LONGEST] * 3


@pytest.mark.parametrize("kind", [Normal, Laplace])
@every_reduction
def test_noise_scales_the_likelihood_s_own_deviation(kind: type, r: int) -> None:
    decoder = go_on(frame_decoder(r, likelihood=kind(C, "learnt")))
    decoder.likelihood.log_scale.data = f64(0.3, -1)
    z = latent(1).expand(20_000, -1)
    scale = decoder.likelihood.log_scale.exp().detach() * (1 if kind is Normal else 2**0.5)
    first = deterministic_stream(decoder, z[0])[:r]
    for noise in (1.0, 0.5):
        frames = decoder.sample(z, FrameSampling(noise=noise, max_steps=r), seeded()).values
        torch.testing.assert_close(frames.mean(0), first, atol=0.04, rtol=0)
        torch.testing.assert_close(frames.std(0), (noise * scale).expand(r, -1), atol=0, rtol=0.04)


def test_later_frames_continue_the_drawn_past_not_the_mode() -> None:
    """The second frame's location is what teacher forcing on the drawn first frame says."""
    decoder = go_on(frame_decoder(1, likelihood=Normal(C, "fixed")))
    z = latent(2_000)
    drawn = decoder.sample(z, FrameSampling(noise=1.0, max_steps=2), seeded())
    location = decoder.to_frames(decoder.hidden(z, drawn))[:, 1].detach()
    residual = drawn.values[:, 1] - location
    torch.testing.assert_close(residual.mean(0), torch.zeros(C).double(), atol=0.08, rtol=0)
    torch.testing.assert_close(residual.std(0), torch.ones(C).double(), atol=0, rtol=0.06)


@pytest.mark.parametrize("decoder", [token_decoder(), frame_decoder(2)], ids=["tokens", "frames"])
def test_draws_repeat_with_a_generator_and_touch_no_other(decoder: TokenDecoder | FrameDecoder) -> None:
    how = TokenSampling(temperature=1.0) if isinstance(decoder, TokenDecoder) else FrameSampling(end="draw")
    before = torch.get_rng_state()
    a, b, c = (decoder.sample(latent(30), how, seeded(seed)) for seed in (5, 5, 6))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(a.values, b.values)
    assert torch.equal(a.lengths, b.lengths)
    assert a.values.shape != c.values.shape or not torch.equal(a.values, c.values)


# Scales


def test_floor_hits_are_the_share_of_scored_channels() -> None:
    decoder = frame_decoder(2, likelihood=Normal(C, "predicted", floor=0.1))
    decoder.to_frames.weight.data.zero_()
    # a block: one channel of the first frame on the floor, both of the second
    decoder.to_frames.bias.data = f64(0, 0, -9, 0, 0, 0, -9, -9)
    observed = torch.ones(4, 5, dtype=torch.bool)
    observed[3, 0] = False
    x = Sequence(torch.zeros(4, 5, C).double(), torch.tensor([2, 1, 0, 3]), observed)
    hits = decoder.floor_hits(latent(4), x)
    assert hits.tolist() == pytest.approx([0.75, 0.5, 0, 0.75])


def test_a_scale_under_its_floor_gets_out_by_training() -> None:
    decoder = frame_decoder(1, likelihood=Normal(C, "learnt", floor=0.1))
    decoder.likelihood.log_scale.data.fill_(math.log(0.01))
    x = Sequence(torch.randn(50, 5, C).double(), torch.full((50,), 5))
    optimiser = torch.optim.Adam([decoder.likelihood.log_scale], 0.1)
    for _ in range(40):
        optimiser.zero_grad()
        (-decoder.log_prob(latent(50), x).sum()).backward()
        optimiser.step()
    assert (decoder.likelihood.log_scale > math.log(0.1)).all()


# The latent and the past


@pytest.mark.parametrize("way", ["to_input", "to_state", "to_output"])
@pytest.mark.parametrize("make", [token_decoder, frame_decoder], ids=["tokens", "frames"])
def test_each_of_the_three_ways_carries_the_latent(make, way: str) -> None:
    decoder = make()
    x = tokens_of([(1, 2, 0)]) if make is token_decoder else Sequence(torch.rand(1, 3, C).double(), torch.tensor([3]))
    for other in {"to_input", "to_state", "to_output"} - {way}:
        getattr(decoder.net, other).weight.data.zero_()
    z = latent(1).requires_grad_()
    nats = decoder.log_prob(z, x)[0]
    for t in range(3):
        (gradient,) = torch.autograd.grad(nats[t], z, retain_graph=True)
        assert gradient.abs().sum() > 1e-9


def effects_of_the_past(decoder: TokenDecoder | FrameDecoder) -> Iterator[bool]:
    """Whether changing the first block (or token) changes what is said about each later step, randomness held."""
    r = getattr(decoder, "reduction", 1)
    if isinstance(decoder, TokenDecoder):
        a, b = torch.tensor([[1, 2, 0]]), torch.tensor([[2, 2, 0]])
    else:
        a = torch.rand(1, 6, C).double()
        b = torch.cat([a[:, :r] + 1, a[:, r:]], 1)
    nats = []
    for values in (a, b):
        torch.manual_seed(3)
        nats.append(decoder.log_prob(latent(1), Sequence(values, torch.tensor([values.shape[1]])))[0])
    for t in range(r, a.shape[1]):
        yield not torch.equal(nats[0][t], nats[1][t])


MAKERS = {
    "tokens": token_decoder,
    "frames": frame_decoder,
    "blocks": lambda **options: frame_decoder(2, **options),
}
every_maker = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


@every_maker
def test_hidden_inputs_leave_only_the_latent_to_tell(make) -> None:
    decoder = make(input_dropout=1.0)
    assert all(effects_of_the_past(decoder))
    decoder.train()
    assert not any(effects_of_the_past(decoder))


@every_maker
def test_half_hidden_inputs_show_some(make) -> None:
    decoder = make(input_dropout=0.5, max_steps=60).train()
    if isinstance(decoder, TokenDecoder):
        x = Sequence(torch.randint(1, V, (8, 50)), torch.full((8,), 50))
    else:
        x = Sequence(torch.rand(8, 50, C).double(), torch.full((8,), 50))
    a, b = decoder.log_prob(latent(8), x), decoder.log_prob(latent(8), x)
    assert not torch.allclose(a, b)
    decoder.eval()
    assert torch.equal(decoder.log_prob(latent(8), x), decoder.log_prob(latent(8), x))


def test_noisy_tokens_are_others_in_training_only() -> None:
    """With noise 1 every previous token is replaced, so that the past tells nothing; the start never is."""
    decoder = token_decoder(input_noise=1.0)
    assert all(effects_of_the_past(decoder))
    decoder.train()
    assert not any(effects_of_the_past(decoder))
    x = tokens_of([(1, 2, 0)])
    quiet = token_decoder().eval()
    quiet.load_state_dict(decoder.state_dict())
    assert torch.equal(decoder.log_prob(latent(1), x)[:, 0], quiet.log_prob(latent(1), x)[:, 0])


@every_reduction
def test_noise_on_frames_is_added_to_the_past_in_training_only(r: int) -> None:
    """Teacher forcing on frames that were noisy to begin with, but scored on the clean ones, gives the same."""
    decoder, z = frame_decoder(r, input_noise=0.3, likelihood=Normal(C, "fixed")), latent(2)
    x = Sequence(torch.rand(2, 6, C).double(), torch.tensor([6, 6]))
    clean = decoder.hidden(z, x)
    decoder.train()
    torch.manual_seed(3)
    noisy = decoder.hidden(z, x)
    assert torch.equal(noisy[:, 0], clean[:, 0])  # the start carries no noise
    assert not torch.isclose(noisy[:, 1:], clean[:, 1:]).all(-1).any()
    torch.manual_seed(3)
    shift = 0.3 * torch.randn(2, 6 // r - 1, r * C, dtype=torch.float64)
    shifted = x.values.clone()
    shifted[:, : 6 - r] += shift.reshape(2, -1, C)
    torch.testing.assert_close(noisy, decoder.eval().hidden(z, Sequence(shifted, x.lengths)))


@pytest.mark.parametrize("make", [token_decoder, frame_decoder], ids=["tokens", "frames"])
def test_a_hole_in_the_past_looks_like_a_hidden_input(make) -> None:
    """With every input hidden in training, and with every earlier step a hole, the last step reads the same."""
    decoder = make(input_dropout=1.0)
    values = torch.tensor([[1, 2, 0]]) if make is token_decoder else torch.rand(1, 3, C).double()
    lengths = torch.tensor([3])
    holes = decoder.log_prob(latent(1), Sequence(values, lengths, torch.tensor([[False, False, True]])))
    decoder.train()
    torch.testing.assert_close(decoder.log_prob(latent(1), Sequence(values, lengths))[:, 2], holes[:, 2])


@pytest.mark.parametrize("make", [token_decoder, frame_decoder], ids=["tokens", "frames"])
def test_dropout_acts_in_training_only(make) -> None:
    decoder = make(dropout=0.5)
    x = tokens_of([(1, 2, 0)]) if make is token_decoder else Sequence(torch.rand(1, 3, C).double(), torch.tensor([3]))
    assert torch.equal(decoder.log_prob(latent(1), x), decoder.log_prob(latent(1), x))
    decoder.train()
    assert not torch.equal(decoder.log_prob(latent(1), x), decoder.log_prob(latent(1), x))


# Errors


def test_too_long_sequences_are_named() -> None:
    x = Sequence(torch.zeros(2, 9, C).double(), torch.tensor([3, 9]))
    with pytest.raises(ValueError, match="9 steps, but this decoder was built for at most 7"):
        frame_decoder().log_prob(latent(2), x)
    frame_decoder().log_prob(latent(2), Sequence(x.values, torch.tensor([3, 7])))  # padding may pass the limit
    with pytest.raises(ValueError, match="at most 4"):
        token_decoder().log_prob(latent(1), tokens_of([(1,) * 5]))


def test_latents_and_sequences_must_pair_up() -> None:
    with pytest.raises(ValueError, match="latent of 3 rows, but 2 sequences"):
        token_decoder().log_prob(latent(3), tokens_of([(0,), (0,)]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TokenDecoder(3, 2, end=3, max_steps=4), r"end must be a token in 0\.\.2, got 3"),
        (lambda: TokenDecoder(3, 2, end=0, max_steps=0), "max_steps must be at least 1, got 0"),
        (lambda: FrameDecoder(Normal(2), 2, max_steps=0), "max_steps must be at least 1"),
        (lambda: FrameDecoder(Normal(2), 2, max_steps=3, reduction=0), "reduction must be at least 1"),
        (lambda: TokenSampling(temperature=-1), "temperature"),
        (lambda: TokenSampling(top_k=0), "top_k"),
        (lambda: TokenSampling(top_p=0), "top_p"),
        (lambda: TokenSampling(max_steps=0), "max_steps"),
        (lambda: FrameSampling(noise=1.1), "noise"),
        (lambda: FrameSampling(end="stop"), "end must be"),
        (lambda: FrameSampling(max_steps=0), "max_steps"),
    ],
)
def test_bad_arguments_are_errors(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
