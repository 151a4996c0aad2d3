"""Checks of encoders and decoders, for any module that offers what `mmseqvae.modality` asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mmseqvae.decoding import FrameSampling, Sampling, TokenSampling
from mmseqvae.sequence import Sequence
from mmseqvae.testing.contract import (
    READ_WHAT_IS_THERE,
    Answer,
    ContractError,
    check_reading,
    check_same,
    check_shape,
    chosen,
    copied,
    described,
    junk,
    made_batches,
    row,
    told,
)

DRAWS = 32  # latents that are drawn from
MOST_SEQUENCES = 1024  # that are written out to add up their probabilities
USE_GENERATOR = "Draw all noise with `generator`, as in `torch.randn(..., generator=generator)`."


def verify_encoder(
    encoder: nn.Module,
    *,
    channels: int | None = None,
    vocabulary: int | None = None,
    batches: Iterable[Sequence] | None = None,
) -> None:
    """Check that a module `Sequence -> Gaussian` with an attribute `latent` reads what was observed and nothing else.

    Args:
        encoder: the module.
        channels: C where it reads frames [B, T, C]; by default its attribute of that name.
        vocabulary: V where it reads tokens 0..V-1, [B, T]; by default its attribute of that name.
        batches: what it is verified on in place of `made_batches`, such as values in its own units, float64.

    Raises:
        ContractError: an AssertionError that says what is wrong.
        ValueError: neither or both of channels and vocabulary are known, or `batches` is empty.
    """
    latent, reads = _latent("encoder", encoder), _reads(encoder, channels, vocabulary)
    with copied(encoder) as (part, device):

        def ask(x: Sequence, rows: slice) -> Answer:
            expert = part(x)
            if not (isinstance(getattr(expert, "mean", None), Tensor) and hasattr(expert, "logvar")):
                kind = type(expert).__name__
                raise ContractError(f"your encoder returns a {kind}: return mmseqvae.Gaussian(mean, logvar)")
            said: Answer = {"mean": expert.mean, "log-variance": expert.logvar}
            for name, value in said.items():
                check_shape(f"your encoder gives a {name}", value, (len(x), latent), "[B, latent]", x)
            return said

        for x in chosen(batches, made_batches(**reads)):
            check_reading("encoder", part, ask, x.to(device), {})


def verify_decoder(
    decoder: nn.Module,
    *,
    channels: int | None = None,
    vocabulary: int | None = None,
    end: int | None = None,
    longest: int = 8,
    batches: Iterable[Sequence] | None = None,
) -> None:
    """Check that a decoder (`mmseqvae.modality.Decoder`) scores what was observed and draws what it scores.

    The probabilities of all short sequences of tokens are added up, unless there are more than 1024 of one token.

    Args:
        decoder: a module with `latent`, `writes`, `log_prob` and `sample`; `complete` is checked where it has one.
        channels: C where it writes frames [B, T, C]; by default its attribute of that name.
        vocabulary: V where it writes tokens 0..V-1, [B, T]; by default its attribute of that name.
        end: the token that every sequence ends with; by default its attribute `end`, None where there is none.
        longest: most steps of a sequence that it has to score, never more than its attribute `max_steps`.
        batches: what it is verified on in place of `made_batches`, such as values in its own units, float64.

    Raises:
        ContractError: an AssertionError that says what is wrong.
        ValueError: neither or both of channels and vocabulary are known, or `batches` is empty.
    """
    latent, reads = _latent("decoder", decoder), _reads(decoder, channels, vocabulary)
    tokens = "vocabulary" in reads
    if getattr(decoder, "writes", None) != (wanted := "tokens" if tokens else "frames"):
        raise ContractError(f'your decoder needs an attribute `writes` that is "{wanted}", since it has {reads}')
    for method in ("log_prob", "sample"):
        if not callable(getattr(decoder, method, None)):
            raise ContractError(f"your decoder needs a method `{method}`: see mmseqvae.modality.Decoder")
    end = getattr(decoder, "end", None) if tokens and end is None else end
    longest = min(longest, getattr(decoder, "max_steps", longest))
    with copied(decoder) as (part, device):
        latents = torch.randn(DRAWS, latent, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        latents = latents.to(device)
        for made in chosen(batches, made_batches(**reads, end=end, longest=longest)):
            x = made.to(device)
            z = latents[: len(x)].clone().requires_grad_()

            def ask(view: Sequence, rows: slice, z: Tensor = z) -> Answer:
                return {"log-probability": _scored(part, z[rows], view)}

            check_reading("decoder", part, ask, x, {"z": z})
            _check_stacked(part, latents, x)
            if hasattr(part, "complete"):
                _check_completed(part, z.detach(), x, reads)
            if not tokens:
                _check_future(part, z.detach(), x)
        if tokens and reads["vocabulary"] <= MOST_SEQUENCES:
            _check_total(part, latents[0], reads["vocabulary"], end, longest)
        _check_drawn(part, latents, reads)


def _latent(role: str, part: nn.Module) -> int:
    latent = getattr(part, "latent", None)
    if not isinstance(latent, int):
        raise ContractError(f"your {role} needs an attribute `latent`, how many dimensions z has, got {latent!r}")
    return latent


def _reads(part: nn.Module, channels: int | None, vocabulary: int | None) -> dict[str, int]:
    """What `made_batches` needs to know of the values."""
    if channels is None and vocabulary is None:
        channels, vocabulary = getattr(part, "channels", None), getattr(part, "vocabulary", None)
    known = {name: n for name, n in (("channels", channels), ("vocabulary", vocabulary)) if n is not None}
    if len(known) != 1:
        raise ValueError(f"say channels=... of frames or vocabulary=... of tokens, one of the two, got {known or None}")
    return known


def _scored(part: Any, z: Tensor, x: Sequence) -> Tensor:
    """`log_prob`, of the right shape and 0 where nothing was observed."""
    nats = part.log_prob(z, x)
    if not isinstance(nats, Tensor):
        raise ContractError(f"`log_prob` of your decoder returns a {type(nats).__name__}, not nats [..., B, T]")
    check_shape("your decoder gives log-probabilities", nats, (*z.shape[:-1], x.steps), "[..., B, T]", x)
    outside = (nats != 0) & ~x.mask
    if outside.any():
        *_, i, t = outside.nonzero()[0].tolist()
        what, counts = "a hole" if t < x.lengths[i] else "padding", nats[..., i, t].flatten()[0].item()
        raise ContractError(
            f"your decoder scores {what}: step {t} of {row(x, i)} counts {counts:.4g} nats, although it was not "
            "observed. Return `torch.where(x.mask, nats, 0)`."
        )
    return nats


def _check_stacked(part: Any, latents: Tensor, x: Sequence) -> None:
    """z [2, 2, B, D] is four calls with z [B, D]."""
    z = torch.stack([latents[: len(x)], -latents[: len(x)], 0.5 * latents[: len(x)], latents[: len(x)].flip(0)])
    advice = "z is [..., B, D], with any leading dimensions: let the sequence broadcast against them."
    what = "your decoder forgets the leading dimensions of z"
    with told(f"{what} when z is {list(z.unflatten(0, (2, 2)).shape)}", advice):
        stacked = _scored(part, z.unflatten(0, (2, 2)), x).flatten(0, 1)
    for k, one in enumerate(z):
        expected = {"log-probability": _scored(part, one, x)}
        check_same(what, {"log-probability": stacked[k]}, expected, x, "when draws were stacked", advice)


def _check_future(part: Any, z: Tensor, x: Sequence) -> None:
    """log p(frame_t | earlier frames, z): no gradient in later ones."""
    now = x.steps // 2
    values = x.values.clone().requires_grad_()
    nats = part.log_prob(z, Sequence(values, x.lengths, x.observed))[:, :now].sum()
    (gradient,) = torch.autograd.grad(nats, values, allow_unused=True) if nats.requires_grad else (None,)
    if gradient is not None and gradient[:, now:].any():
        raise ContractError(
            f"your decoder sees the future: the log-probabilities of steps 0..{now - 1} depend on later frames in "
            f"{described(x)}. They are log p(x_t | x_<t, z): shift what the decoder reads by one step."
        )


def _check_total(part: Any, z: Tensor, vocabulary: int, end: int | None, longest: int) -> None:
    """The probabilities of all sequences up to a few steps, and of all that go on, add up to 1.

    Where no `end` is known, those of all sequences of as many steps are at most 1.
    """
    steps = max(n for n in range(1, longest + 1) if n == 1 or vocabulary**n <= MOST_SEQUENCES)
    tokens = torch.cartesian_prod(*[torch.arange(vocabulary)] * steps).reshape(-1, steps)
    ends = tokens == end if end is not None else torch.zeros_like(tokens, dtype=torch.bool)
    over = ends.cumsum(1) - ends.long() > 0  # an end stands before
    tokens, over = (t[(ends | ~over).all(1)] for t in (tokens, over))  # each sequence once
    x = Sequence(tokens, (~over).sum(1)).to(z.device)
    with told(
        "your decoder fails on short sequences", "Every token may stand at every step; impossible ones have -inf."
    ):
        total = float(x.sum_steps(part.log_prob(z.expand(len(x), -1), x)).exp().sum().detach())
    if not (total <= 1 + 1e-6 and (end is None or total >= 1 - 1e-6)):
        raise ContractError(
            f"the probabilities of your decoder add up to {total:.6g} over all {len(x)} sequences of up to {steps} "
            f"steps, {'more than' if end is None else 'not to'} 1. `log_prob` is log p(x_t | x_<t, z), in nats, of a "
            "distribution over the whole vocabulary (log_softmax), and must not see x_t or what follows."
        )


def _check_values(what: str, x: Sequence, reads: dict[str, int]) -> None:
    """Frames of C finite channels, or tokens below V, at the steps that exist."""
    if "channels" in reads:
        check_shape(what, x.values, (len(x), x.steps, reads["channels"]), "[N, T, C]", x)
        bad = ~x.values.isfinite().all(-1) & x.valid
    else:
        check_shape(what, x.values, (len(x), x.steps), "[N, T]", x)
        bad = ((x.values < 0) | (x.values >= reads["vocabulary"])) & x.valid
    if bad.any():
        i, t = bad.nonzero()[0].tolist()
        wanted = "finite" if "channels" in reads else f"a token in 0..{reads['vocabulary'] - 1}"
        raise ContractError(f"{what} where {row(x, i)} is {x.values[i, t].tolist()} at step {t}: it must be {wanted}")


def _ways(part: Any, max_steps: int | None = None) -> tuple[Sampling, Sampling]:
    """A draw from the distribution, and what is likeliest."""
    if part.writes == "tokens":
        return TokenSampling(temperature=1, max_steps=max_steps), TokenSampling(temperature=0, max_steps=max_steps)
    return FrameSampling(noise=1, end="draw", max_steps=max_steps), FrameSampling(noise=0, max_steps=max_steps)


def _check_drawn(part: Any, z: Tensor, reads: dict[str, int]) -> None:
    """`sample` draws what `log_prob` scores, from the generator alone, and no noise where `how` wants none."""
    most, (free, greedy) = getattr(part, "max_steps", None), _ways(part)

    def draw(z: Tensor, how: Sampling, seed: int, elsewhere: int = 0) -> Sequence:
        torch.manual_seed(elsewhere)
        with told(f"`sample` of your decoder fails for {how}", "It is called as sample(z [N, D], how, generator)."):
            x = part.sample(z, how, torch.Generator(z.device).manual_seed(seed))
        if not isinstance(x, Sequence) or len(x) != len(z):
            raise ContractError(f"`sample` of your decoder must return a Sequence of {len(z)} rows, one for each of z")
        limit = min(n for n in (x.steps, most, how.max_steps) if n is not None)
        if not ((x.lengths >= 1) & (x.lengths <= limit)).all():
            raise ContractError(
                f"`sample` of your decoder draws lengths {int(x.lengths.min())}..{int(x.lengths.max())}: they must lie "
                f"in 1..{limit} for {how}, max_steps {most} and {x.steps} steps of values"
            )
        _check_values("`sample` of your decoder draws values", x, reads)
        return x

    first = draw(z, free, seed=1)
    if not _equal(first, draw(z, free, seed=1, elsewhere=1)):
        raise ContractError(f"`sample` of your decoder ignores `generator`: one seed gave two draws. {USE_GENERATOR}")
    likeliest = draw(z, greedy, seed=1)
    if not _equal(likeliest, draw(z, greedy, seed=2)):
        raise ContractError(f"`sample` of your decoder draws noise although it is asked for {greedy}")
    for i in range(3):
        if not _equal(draw(z[i : i + 1], greedy, seed=1), likeliest[i : i + 1]):
            raise ContractError(f"`sample` of your decoder mixes rows: with {greedy} row {i} alone is another sequence")
    for how in _ways(part, max_steps=2):
        draw(z, how, seed=1)
    nats = _scored(part, z, first)
    if not nats.isfinite().all():
        i, t = (~nats.isfinite()).nonzero()[0].tolist()
        raise ContractError(
            f"your decoder draws what it calls impossible: it scores step {t} of its own draw, {row(first, i)}, with "
            f"{nats[i, t].item()} nats. `sample` and `log_prob` must speak of one distribution."
        )


def _check_completed(part: Any, z: Tensor, x: Sequence, reads: dict[str, int]) -> None:
    """`complete` keeps what was observed, reads nothing else, and draws the rest from the generator alone."""
    for how in _ways(part):

        def fill(view: Sequence, elsewhere: int = 0, how: Sampling = how) -> Sequence:
            torch.manual_seed(elsewhere)
            with told(f"`complete` of your decoder fails on {described(view)}", READ_WHAT_IS_THERE):
                values = part.complete(z, view, how, torch.Generator(z.device).manual_seed(1))
            return Sequence(values, x.lengths)

        done = fill(x)
        check_shape("`complete` of your decoder returns values", done.values, tuple(x.values.shape), "as x.values", x)
        changed = x.mask & (done.values != x.values if x.values.ndim == 2 else (done.values != x.values).any(-1))
        if changed.any():
            i, t = changed.nonzero()[0].tolist()
            raise ContractError(f"`complete` of your decoder changes what was observed: step {t} of {row(x, i)}")
        _check_values("`complete` of your decoder draws values", done, reads)
        if not _equal(done, fill(x, elsewhere=1)):
            raise ContractError(f"`complete` of your decoder ignores `generator`. {USE_GENERATOR}")
        if not _equal(done, fill(junk(x, ~x.mask))):
            raise ContractError(f"`complete` of your decoder reads holes in {described(x)}. {READ_WHAT_IS_THERE}")


def _equal(a: Sequence, b: Sequence) -> bool:
    """The same lengths, and values within rounding."""
    if not torch.equal(a.lengths, b.lengths):
        return False
    pairs = zip(a.items(), b.items(), strict=True)
    return all(torch.allclose(one.double(), other.double(), rtol=1e-6, atol=1e-6) for one, other in pairs)
