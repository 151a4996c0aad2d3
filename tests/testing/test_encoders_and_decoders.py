"""Own parts that keep the contract pass; each broken one is told what it does wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmseqvae import FrameEncoder, Gaussian, Modality, MultimodalVAE, Sequence, TokenDecoder
from mmseqvae.objectives import elbo
from mmseqvae.testing import ContractError, made_batches, verify_decoder, verify_encoder
from tests.testing.own_parts import (
    CHANNELS,
    LATENT,
    VOCABULARY,
    ConvolutionalEncoder,
    SteadyDecoder,
    TokenBagDecoder,
    TokenBagEncoder,
)


def test_own_parts_pass_and_stay_as_they_are() -> None:
    for verify, part, how in (
        (verify_encoder, ConvolutionalEncoder(), {"channels": CHANNELS}),
        (verify_encoder, TokenBagEncoder(), {}),
        (verify_decoder, TokenBagDecoder(), {}),
        (verify_decoder, SteadyDecoder(), {}),
    ):
        before = {name: value.clone() for name, value in part.state_dict().items()}
        noise = torch.get_rng_state()
        with torch.no_grad():
            verify(part.train(), **how)
        assert torch.equal(torch.get_rng_state(), noise)
        assert part.training
        assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())
        assert all(parameter.grad is None for parameter in part.parameters())


def test_the_example_of_contributing_runs() -> None:
    page = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "verify_encoder" in code)
    decoder = TokenDecoder(30, LATENT, end=0, max_steps=6, hidden=4)
    exec(example, {"encoder": FrameEncoder(80, LATENT, hidden=4), "decoder": decoder, "objective": elbo})


def test_labels_large_vocabularies_and_long_decoders_pass() -> None:
    for decoder in (
        TokenDecoder(6, LATENT, end=0, max_steps=1, hidden=4),
        TokenDecoder(6, LATENT, end=0, max_steps=2, hidden=4, never_first=(0, 1)),
        TokenDecoder(2000, LATENT, end=5, max_steps=500, hidden=4),
    ):
        verify_decoder(decoder)


def test_no_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing would be verified"):
        verify_encoder(ConvolutionalEncoder(), channels=CHANNELS, batches=[])


def test_own_parts_make_a_model() -> None:
    modality = Modality(ConvolutionalEncoder(), SteadyDecoder())
    model = MultimodalVAE({"audio": modality, "text": Modality(TokenBagEncoder(), TokenBagDecoder())}).double()
    batch = {
        "audio": made_batches(channels=CHANNELS)[4],
        "text": made_batches(vocabulary=VOCABULARY, end=0)[5],
    }
    terms = elbo(model, batch)
    assert terms.objective.isfinite().all()
    assert terms.reconstruction["audio"].tolist()[1] == terms.reconstruction["text"].tolist()[2] == 0


def test_the_made_batches_hold_what_they_must() -> None:
    batches = made_batches(vocabulary=VOCABULARY, end=0)
    some = [x for x in batches if x.present.any()]
    assert any(not x.present.all() for x in some)  # missing beside others
    assert any((x.lengths < x.steps).all() for x in some)  # T beyond every length
    assert any((x.lengths == x.steps).all() for x in some)  # no padding
    assert any((x.valid & ~x.mask).any() for x in some)  # holes
    assert any(len(x) and x.steps and not x.lengths.any() for x in batches)
    for x in batches:
        for row in x.items():
            assert (row == 0).nonzero().flatten().tolist() == ([len(row) - 1] if len(row) else [])
    assert max(x.steps for x in made_batches(channels=1, longest=1)) <= 4


# Broken encoders


class ReadsPadding(ConvolutionalEncoder):
    def frames(self, x: Sequence) -> Tensor:
        return torch.nn.functional.pad(x.values, (0, 0, 0, 1))


class MultipliesByTheMask(ConvolutionalEncoder):
    def frames(self, x: Sequence) -> Tensor:
        return torch.nn.functional.pad(x.values * x.mask[..., None], (0, 0, 0, 1))


class ReadsHoles(ConvolutionalEncoder):
    def frames(self, x: Sequence) -> Tensor:
        return torch.nn.functional.pad(Sequence(x.values, x.lengths).filled(), (0, 0, 0, 1))


class ReadsToTheEnd(ConvolutionalEncoder):
    """Of the padded steps, whose number depends on the batch."""

    def pool(self, x: Sequence, states: Tensor) -> Tensor:
        return states[:, -1]


class LeansOnTheBatch(ConvolutionalEncoder):
    def pool(self, x: Sequence, states: Tensor) -> Tensor:
        pooled = super().pool(x, states)
        return pooled - pooled.mean(0)


class FailsOnLengthZero(ConvolutionalEncoder):
    def states(self, x: Sequence) -> Tensor:
        if x.steps:
            nn.utils.rnn.pack_padded_sequence(x.filled(), x.lengths, batch_first=True, enforce_sorted=False)
        return super().states(x)


class DividesByLength(TokenBagEncoder):
    def forward(self, x: Sequence) -> Gaussian:
        total = torch.where(x.mask[..., None], self.embedding(x.filled()), 0).sum(1)
        return Gaussian(*(total / x.mask.sum(1)[:, None]).chunk(2, -1))


class DrawsNoise(ConvolutionalEncoder):
    def pool(self, x: Sequence, states: Tensor) -> Tensor:
        pooled = super().pool(x, states)
        return pooled + 0.1 * torch.randn_like(pooled)


class EmbedsPadding(TokenBagEncoder):
    def forward(self, x: Sequence) -> Gaussian:
        total = torch.where(x.mask[..., None], self.embedding(x.values), 0).sum(1)
        return Gaussian(*(total / x.mask.sum(1).clamp(min=1)[:, None]).chunk(2, -1))


class TooWide(ConvolutionalEncoder):
    def forward(self, x: Sequence) -> Gaussian:
        expert = super().forward(x)
        return Gaussian(expert.mean.repeat(1, 2), expert.logvar.repeat(1, 2))


class ReturnsAPair(ConvolutionalEncoder):
    def forward(self, x: Sequence) -> tuple[Tensor, Tensor]:
        expert = super().forward(x)
        return expert.mean, expert.logvar


class LeavesOut(ConvolutionalEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(1))


class FlatAtZero(ConvolutionalEncoder):
    """The square root of a sum of squares that may be 0: its gradient is infinite there."""

    def pool(self, x: Sequence, states: Tensor) -> Tensor:
        energy = (self.convolution.weight.square().sum() * x.filled().square().sum((1, 2))).sqrt()
        return super().pool(x, states) + energy[:, None]


class LearnsFromHoles(ConvolutionalEncoder):
    """The result is the same; what leads to it is not."""

    def frames(self, x: Sequence) -> Tensor:
        scaled = x.values * self.convolution.weight.mean()
        return super().frames(x) + 0 * torch.nn.functional.pad(torch.where(x.mask[..., None], scaled, 0), (0, 0, 0, 1))


class NoLatent(ConvolutionalEncoder):
    def __init__(self) -> None:
        super().__init__()
        del self.latent


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (ReadsPadding, r"reads padding: its mean for row 0 \(length 7 of 9\), at \[0\], went from \S+ to nan when the "
                       r"values beyond the lengths were NaN\. Read `x\.filled\(\)`"),
        (MultipliesByTheMask, "reads padding.*NaN times a mask of 0 is still NaN"),
        (ReadsHoles, r"reads holes: its mean for row 0 \(length 8 of 10\).*to nan when the values of unobserved"),
        (ReadsToTheEnd, r"depends on how far a batch is padded.*with 3 more steps of padding\. Pool over"),
        (LeansOnTheBatch, r"mixes the rows of a batch: .*when row 0 was alone in a batch of 7 steps.*no statistics"),
        (FailsOnLengthZero, r"fails on a batch of lengths \[0, 0, 0\] in 4 steps: it raises RuntimeError: Length of "
                            r"all samples.*A length of 0 is a missing item"),
        (DividesByLength, r"mean of your encoder is not finite for row 0 \(length 0 of 4\).*clamp\(min=1\)"),
        (DrawsNoise, "says something else every time.*on a second call.*if self.training"),
        (EmbedsPadding, r"fails when the values beyond the lengths were the token -1000000: it raises IndexError"),
        (TooWide, r"gives a mean of shape \[3, 4\] for a batch of lengths \[7, 3, 1\].*\[B, latent\], here \[3, 2\]"),
        (ReturnsAPair, r"returns a tuple: return mmseqvae\.Gaussian\(mean, logvar\)"),
        (LeavesOut, r"unused of your encoder gets no gradient from a batch of lengths \[7, 3, 1\]"),
        (FlatAtZero, "has a gradient that is not finite.*`torch.where` hides a NaN"),
        (LearnsFromHoles, "convolution.weight of your encoder learns from padding or holes"),
        (NoLatent, "needs an attribute `latent`, how many dimensions z has, got None"),
    ],
)  # fmt: skip
def test_broken_encoders_are_told(encoder, message: str) -> None:
    torch.manual_seed(0)
    reads = {"vocabulary": VOCABULARY} if issubclass(encoder, TokenBagEncoder) else {"channels": CHANNELS}
    with pytest.raises(ContractError, match=message) as told:
        verify_encoder(encoder(), **reads)
    assert "\n" not in str(told.value)


# Broken decoders


class ScoresPadding(SteadyDecoder):
    def log_prob(self, z: Tensor, x: Sequence) -> Tensor:
        return super().log_prob(z, Sequence(x.filled(), torch.full_like(x.lengths, x.steps)))


class ScoresHoles(SteadyDecoder):
    def log_prob(self, z: Tensor, x: Sequence) -> Tensor:
        return super().log_prob(z, Sequence(x.filled(), x.lengths))


class AddsUpSteps(SteadyDecoder):
    def log_prob(self, z: Tensor, x: Sequence) -> Tensor:
        return super().log_prob(z, x).sum(-1)


class ForgetsLeadingDimensions(SteadyDecoder):
    def log_prob(self, z: Tensor, x: Sequence) -> Tensor:
        return super().log_prob(z.reshape(-1, z.shape[-1])[: len(x)], x)


class RefusesLeadingDimensions(SteadyDecoder):
    def log_prob(self, z: Tensor, x: Sequence) -> Tensor:
        _rows, _ = z.shape
        return super().log_prob(z, x)


class MixesDraws(SteadyDecoder):
    def log_prob(self, z: Tensor, x: Sequence) -> Tensor:
        return super().log_prob(z - z.mean(0) if z.ndim > 2 else z, x)


class SeesTheFuture(SteadyDecoder):
    def log_prob(self, z: Tensor, x: Sequence) -> Tensor:
        ahead = x.filled().flip(1).cumsum(1).flip(1).sum(-1)
        return super().log_prob(z, x) + torch.where(x.mask, 0.01 * ahead, 0)


class IgnoresGenerator(SteadyDecoder):
    def noise(self, shape, how, generator, like):
        return super().noise(shape, how, None, like)


class IgnoresHow(SteadyDecoder):
    def noise(self, shape, how, generator, like):
        return torch.randn(shape, generator=generator, dtype=like.dtype)


class MixesDrawnRows(SteadyDecoder):
    def sample(self, z, how, generator=None):
        return super().sample(z - z.mean(0), how, generator)


class NeverEnds(SteadyDecoder):
    def sample(self, z, how, generator=None):
        drawn = super().sample(z, how, generator)
        return Sequence(drawn.values, drawn.lengths + 1)


class DrawsNothing(SteadyDecoder):
    def sample(self, z, how, generator=None):
        drawn = super().sample(z, how, generator)
        return Sequence(drawn.values, drawn.lengths - 1)


class IgnoresMaxSteps(TokenBagDecoder):
    def sample(self, z, how, generator=None):
        return super().sample(z, type(how)(temperature=how.temperature), generator)


class DrawsInfinity(SteadyDecoder):
    def noise(self, shape, how, generator, like):
        return super().noise(shape, how, generator, like) / 0


class DrawsOneRow(SteadyDecoder):
    def sample(self, z, how, generator=None):
        return super().sample(z[:1], how, generator)


class DrawsOutside(TokenBagDecoder):
    def draw(self, logits, how, generator):
        return super().draw(logits, how, generator) * 2


class NeverScoresOne(TokenBagDecoder):
    """But draws it."""

    def log_prob(self, z: Tensor, x: Sequence) -> Tensor:
        logits = self.logits(z, x.steps).clone()
        logits[..., 1] = -torch.inf
        nats = logits.log_softmax(-1).gather(-1, x.filled()[..., None].expand(*z.shape[:-1], -1, 1)).squeeze(-1)
        return torch.where(x.mask, nats, 0)


class IsNotNormalised(TokenBagDecoder):
    def log_prob(self, z: Tensor, x: Sequence) -> Tensor:
        return torch.where(x.mask, super().log_prob(z, x) + 0.1, 0)


class WithoutEnd(IsNotNormalised):
    """More than 1 is too much also where nobody knows how a sequence ends."""

    def __init__(self) -> None:
        super().__init__()
        self.stop, self.max_steps = self.end, 1000
        del self.end

    def logits(self, z: Tensor, steps: int) -> Tensor:
        return self.to_logits(z)[..., None, :].expand(*z.shape[:-1], steps, -1)


class ChangesTheObserved(TokenBagDecoder):
    def complete(self, z, x, how, generator=None):
        return self.draw(self.logits(z, x.steps), how, generator) if x.steps else x.values


class CompletesWithGlobalNoise(TokenBagDecoder):
    def complete(self, z, x, how, generator=None):
        return super().complete(z, x, how)


class CompletesFromHoles(TokenBagDecoder):
    def complete(self, z, x, how, generator=None):
        return torch.where(x.values >= 0, x.values, self.end)


class CompletesOneStepLess(TokenBagDecoder):
    def complete(self, z, x, how, generator=None):
        return super().complete(z, x, how, generator)[:, :-1]


class WritesNothing(TokenBagDecoder):
    writes = None


class CannotSample(SteadyDecoder):
    sample = None


class Detached(SteadyDecoder):
    def log_prob(self, z: Tensor, x: Sequence) -> Tensor:
        return super().log_prob(z.detach(), x)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (ScoresPadding, r"scores padding: step 7 of row 0 \(length 7 of 9\) counts \S+ nats.*torch\.where\(x\.mask"),
        (ScoresHoles, r"scores a hole: step \d of row 0 \(length 8 of 10\)"),
        (AddsUpSteps, r"log-probabilities of shape \[3\] for .*must be \[\.\.\., B, T\], here \[3, 9\]"),
        (ForgetsLeadingDimensions, r"log-probabilities of shape \[3, 9\].*here \[2, 2, 3, 9\]"),
        (RefusesLeadingDimensions, r"leading dimensions of z when z is \[2, 2, 3, 2\]: it raises ValueError"),
        (MixesDraws, "forgets the leading dimensions of z: its log-probability.*when draws were stacked"),
        (SeesTheFuture, r"sees the future: the log-probabilities of steps 0\.\.3 depend on later frames"),
        (IgnoresGenerator, r"ignores `generator`: one seed gave two draws.*generator=generator"),
        (IgnoresHow, r"draws noise although it is asked for FrameSampling\(noise=0"),
        (MixesDrawnRows, "mixes rows: with .* row 0 alone is another sequence"),
        (NeverEnds, r"draws lengths \d+\.\.\d+: they must lie in 1\.\."),
        (DrawsNothing, r"draws lengths 0\.\."),
        (IgnoresMaxSteps,
         r"must lie in 1\.\.2 for TokenSampling\(temperature=1, .*max_steps=2\)"),
        (DrawsInfinity, r"draws values where row 0 .* at step 0: it must be finite"),
        (DrawsOneRow, "must return a Sequence of 32 rows"),
        (DrawsOutside, r"draws values where row \d+ .* is [46] at step \d: it must be a token in 0\.\.3"),
        (IsNotNormalised, r"add up to \S+ over all 364 sequences of up to 5 steps, not to 1"),
        (WithoutEnd, r"add up to \S+ over all 1024 sequences of up to 5 steps, more than 1"),
        (ChangesTheObserved, "`complete` of your decoder changes what was observed: step"),
        (CompletesWithGlobalNoise, "`complete` of your decoder ignores `generator`"),
        (CompletesFromHoles, "`complete` of your decoder reads holes"),
        (CompletesOneStepLess, r"`complete` .* of shape \[3, 8\] for .*as x\.values, here \[3, 9\]"),
        (WritesNothing, r'needs an attribute `writes` that is "tokens"'),
        (CannotSample, "needs a method `sample`"),
        (Detached, r"z of your decoder gets no gradient"),
    ],
)  # fmt: skip
def test_broken_decoders_are_told(decoder, message: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ContractError, match=message) as told:
        verify_decoder(decoder())
    assert "\n" not in str(told.value)


def test_what_a_decoder_draws_must_be_possible() -> None:
    with pytest.raises(
        ContractError, match=r"log-probability of your decoder is not finite for row 0.*say in `batches`"
    ):
        verify_decoder(NeverScoresOne())
    possible = [Sequence(torch.tensor([[2, 3, 0], [3, 0, 0]]), torch.tensor([3, 2]))]
    verify_decoder(TokenBagDecoder(), batches=possible)
    with pytest.raises(ContractError, match=r"draws what it calls impossible: it scores step \d of .* with -inf nats"):
        verify_decoder(NeverScoresOne(), batches=possible)


def test_what_is_read_must_be_known() -> None:
    with pytest.raises(ValueError, match=r"say channels=\.\.\. of frames or vocabulary=\.\.\. of tokens"):
        verify_encoder(ConvolutionalEncoder())
    with pytest.raises(ValueError, match=r"one of the two, got \{'channels': 3, 'vocabulary': 4\}"):
        verify_encoder(ConvolutionalEncoder(), channels=3, vocabulary=4)


def test_own_batches_are_what_is_verified() -> None:
    """In other units, where this encoder fails."""

    class Bounded(ConvolutionalEncoder):
        def frames(self, x: Sequence) -> Tensor:
            return super().frames(x).clamp(max=100).add(1).log()

    verify_encoder(Bounded(), channels=CHANNELS)
    cold = Sequence(torch.full((2, 3, CHANNELS), -5.0).double(), torch.tensor([3, 2]))
    with pytest.raises(ContractError, match=r"mean of your encoder is not finite for row 0 \(length 3 of 3\)"):
        verify_encoder(Bounded(), channels=CHANNELS, batches=[cold])


def test_no_test_framework_is_needed() -> None:
    code = "import sys, mmseqvae.testing; mmseqvae.testing.verify_objective; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pytest", "hypothesis", "lightning", "sklearn", "tokenizers"} & set(found)
