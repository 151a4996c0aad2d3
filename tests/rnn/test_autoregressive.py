"""Prepared steps, compiled draws and frames against their plain versions."""

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from benchmarks.speed.sampling import ObviousFrames, ObviousTokens, main
from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.decoding import FrameSampling, TokenSampling
from mmseqvae.distributions.likelihoods import Laplace, Normal
from mmseqvae.rnn import autoregressive
from mmseqvae.rnn.autoregressive import AHEAD, Blocks, Ends, PreparedSteps, Steps, Tokens

D, H = 3, 12
prepared_kinds = pytest.mark.parametrize("kind", ["tanh", "gru"])
every_type = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spread(decoder: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Weights and biases large enough for all of them to matter."""
    for parameter in decoder.parameters():
        parameter.data = 1.5 * parameter.data + 0.2 * torch.randn_like(parameter)
    return decoder.to(dtype).eval()


def token_decoder(vocabulary: int = 30, dtype: torch.dtype = torch.float32, **how: Any) -> TokenDecoder:
    return spread(TokenDecoder(vocabulary, D, end=2, max_steps=9, embedding=5, hidden=H, **how), dtype)


def frame_decoder(r: int, likelihood: Any = None, dtype: torch.dtype = torch.float32, **how: Any) -> FrameDecoder:
    sizes = {"hidden": H, "inputs": 6, "max_steps": 90}
    return spread(FrameDecoder(likelihood or Normal(4), D, reduction=r, **sizes, **how), dtype)


def go_on(decoder: FrameDecoder) -> None:
    """Only the limit ends a sequence, and at its very last frame."""
    decoder.to_end.bias.data = torch.tensor([1000.0, *(100.0 * k for k in range(1, decoder.reduction + 1))]).to(
        decoder.to_end.bias
    )


@prepared_kinds
@every_type
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("rows", [1, 4, 20])  # 9 steps of one row are fewer than the tokens; 20 are no few rows
def test_prepared_steps_are_the_plain_ones(kind: str, dtype: torch.dtype, layers: int, rows: int) -> None:
    decoder, z = token_decoder(kind=kind, layers=layers, dtype=dtype), torch.randn(rows, D, dtype=dtype)
    frames = frame_decoder(2, kind=kind, layers=layers, dtype=dtype)
    with torch.no_grad():
        prepared = autoregressive.steps(decoder.net, z, 9, decoder.embedding)
        others = autoregressive.steps(frames.net, z, 9)
        plain, plain_others = Steps(decoder.net, z, decoder.embedding), Steps(frames.net, z, None)
        assert isinstance(prepared, PreparedSteps)
        for _ in range(9):
            token, x = torch.randint(32, (rows,)), torch.randn(rows, 6, dtype=dtype)
            torch.testing.assert_close(prepared(token), plain(token), atol=2e-6, rtol=1e-5)
            torch.testing.assert_close(others(x), plain_others(x), atol=2e-6, rtol=1e-5)
        assert torch.equal(prepared.added, plain.added)


def test_lstms_and_autocast_take_plain_steps() -> None:
    z = torch.randn(2, D)
    assert isinstance(autoregressive.steps(token_decoder(kind="lstm").net, z, 9), Steps)
    decoder = frame_decoder(2)
    exact = decoder.sample(z, FrameSampling(noise=0.0, max_steps=4))
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(autoregressive.steps(decoder.net, z, 9), Steps)
        rounded = decoder.sample(z, FrameSampling(noise=0.0, max_steps=4))
        assert token_decoder().sample(z, TokenSampling(temperature=1.0)).lengths.min() > 0
    shared = min(exact.steps, rounded.steps)
    torch.testing.assert_close(rounded.values[:, :shared].float(), exact.values[:, :shared], atol=0.2, rtol=0)


@pytest.mark.parametrize("vocabulary", [1, 7, 63, 64, 65, 300])
@pytest.mark.parametrize(
    "how",
    [
        TokenSampling(),
        TokenSampling(1.0),
        TokenSampling(0.7),
        TokenSampling(0.7, top_k=3),
        TokenSampling(1.0, top_p=0.6),
    ],
)
def test_compiled_draws_are_the_plain_ones(vocabulary: int, how: TokenSampling) -> None:
    like, end = torch.zeros(40, 1), vocabulary // 2
    fast, plain = (Tokens(like, 12, end, how, seeded()) for _ in range(2))
    plain.fast = False
    for t in range(11):
        logits = 2 * torch.randn(40, vocabulary)
        logits[:, end] += 1
        fast.draw(logits, t)
        plain.draw(logits, t)
    assert torch.equal(fast.tokens, plain.tokens)
    assert torch.equal(fast.lengths, plain.lengths)
    assert vocabulary == 1 or len(set(fast.lengths.tolist())) > 2


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_extreme_uniforms_fall_on_possible_tokens(u: float) -> None:
    p = torch.rand(500, 200, generator=seeded())
    p[:, [0, *range(130, 200)]] = 0
    found = torch.empty(500, dtype=torch.long)
    autoregressive.fused().pick(p.numpy(), torch.full((500,), u, dtype=torch.float64).numpy(), found.numpy())
    assert set(found.tolist()) == {1 if u == 0 else 129}


@pytest.mark.parametrize("r", [1, 2, 3])
@pytest.mark.parametrize("draw", [False, True])
def test_compiled_ends_are_the_plain_ones(r: int, draw: bool) -> None:
    fast, plain = (Ends(torch.zeros(60, 1), 20, draw, seeded()) for _ in range(2))
    plain.fast = False
    for j in range(-(-20 // r)):
        output = torch.randn(60, 5 + r + 1)
        output[:, 5] += 2
        ended = fast.block(output, r, j)
        plain.block(output, r, j)
        assert torch.equal(fast.lengths, plain.lengths)
        assert ended == bool((plain.lengths > 0).all())
    assert ended
    assert len(set(fast.lengths.tolist())) > 5


@pytest.mark.parametrize("r", [1, 4])
@pytest.mark.parametrize("likelihood", [Normal(4), Laplace(4, "fixed"), Laplace(4, "predicted")])
def test_frames_are_what_the_net_says_of_them_plus_their_deviations(r: int, likelihood: Any) -> None:
    """By teacher forcing on the drawn frames."""
    decoder, z = frame_decoder(r, likelihood, torch.float64), torch.randn(3, D, dtype=torch.float64)
    go_on(decoder)
    count = 80 // r
    ahead = min(AHEAD, count)
    with torch.no_grad():
        drawn = decoder.sample(z, FrameSampling(noise=0.7, max_steps=80), seeded())
        parameters = decoder.to_frames(decoder.hidden(z, drawn)).unflatten(2, (r, -1)).flatten(1, 2)
        generator = seeded()
        if not likelihood.additive:
            expected = [likelihood.sample(p, 0.7, generator) for p in parameters.unflatten(1, (-1, r)).unbind(1)]
            torch.testing.assert_close(drawn.values, torch.cat(expected, 1))
        else:
            deviations = [likelihood.deviations((ahead, 3, r, 4), z, 0.7, generator) for _ in range(-(-count // ahead))]
            added = torch.cat(deviations).transpose(0, 1).flatten(1, 2)[:, :80]
            torch.testing.assert_close(drawn.values, parameters[..., :4] + added)
            assert added.abs().mean() > 0.1


def test_much_noise_is_drawn_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = frame_decoder(4)
    parts = decoder.likelihood, decoder.from_block, decoder.to_frames, decoder.to_end
    monkeypatch.setattr(autoregressive, "NUMBERS", 3 * 5 * 16)
    assert [Blocks(*parts, torch.zeros(rows, H), 9, 0.5).ahead for rows in (0, 1, 3, 5, 999)] == [9, 9, 5, 3, 1]
    z = torch.randn(5, D)
    go_on(decoder)
    drawn = decoder.sample(z, FrameSampling(noise=1.0, max_steps=36), seeded())
    residual = drawn.values - decoder.to_frames(decoder.hidden(z, drawn)).unflatten(2, (4, -1)).flatten(1, 2)
    scale = decoder.likelihood.log_scale.exp()
    torch.testing.assert_close((residual / scale).std(), torch.tensor(1.0), atol=0.1, rtol=0)


@pytest.mark.parametrize("rows", [1, 20_000])
def test_tokens_of_a_float32_decoder_follow_its_softmax(rows: int) -> None:
    decoder, n = token_decoder(vocabulary=70), 20_000
    z = torch.randn(1, D)
    state, start = decoder.net.begin(z), torch.tensor([decoder.start_token])
    distribution = decoder.step(z, start, state)[0].softmax(-1)[0].detach().double()
    how, generator = TokenSampling(temperature=1.0, max_steps=2), seeded()
    first = [decoder.sample(z.expand(rows, -1), how, generator).values[:, 0] for _ in range(n // rows)]
    counts = torch.bincount(torch.cat(first), minlength=70)
    common = n * distribution > 5
    observed, expected = counts[common].double(), n * distribution[common]
    assert common.sum() > 30
    assert counts[~common].sum() < 30
    assert stats.chisquare(observed, expected * (observed.sum() / expected.sum())).pvalue > 0.01


def test_the_benchmark_s_obvious_loops_have_our_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(5, D)
    decoder = token_decoder()
    ours = decoder.sample(z, TokenSampling(max_steps=9))
    categorical = torch.distributions.Categorical

    def most_likely(logits: Tensor) -> Any:
        return categorical(logits=torch.where(logits == logits.amax(-1, keepdim=True), 0, -torch.inf))

    monkeypatch.setattr(torch.distributions, "Categorical", most_likely)
    theirs = ObviousTokens(decoder)(z, 9)
    for row, other in zip(ours.items(), theirs, strict=True):
        assert torch.equal(row[:8], other[: len(row)][:8])
    frames = frame_decoder(4)
    go_on(frames)
    drawn = frames.sample(z, FrameSampling(noise=0.0, max_steps=30))
    torch.testing.assert_close(ObviousFrames(frames)(z, 30, noise=0.0), drawn.values, atol=1e-4, rtol=1e-4)


def test_the_benchmark_writes_its_table(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    main(steps=3, frames=5, batches=[1, 2], vocabularies=[5], reductions=[1, 2], repeats=1, results=tmp_path)
    table = (tmp_path / "sampling.md").read_text(encoding="utf-8")
    assert table.strip() == capsys.readouterr().out.strip()
    for row in ("| text, V 5 | 1 |", "| audio, r = 2 | 2 |", "| 2 | 1 |"):
        assert row in table
