"""The batches that parts are verified on, what may be done to them without changing an answer, and how it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from mmseqvae.sequence import Sequence

# Lengths, steps of padding behind the longest, and the share of steps that are observed
SHAPES: list[tuple[list[int], int, float]] = [
    ([7, 3, 1], 2, 1),  # items of several lengths, padding behind all of them
    ([5, 5, 5], 0, 1),  # items of one length, no padding
    ([4], 0, 1),  # one item
    ([0, 0, 0], 4, 1),  # every item is missing
    ([4, 0, 6, 0], 0, 1),  # some items are missing
    ([8, 6, 0, 7], 2, 0.5),  # holes
    ([3, 4], 1, 0),  # nothing but holes
]
JUNK = -(10**6)  # a token that no vocabulary has; of frames it is NaN
MORE = 3  # steps of padding that are added
ALL = slice(None)  # rows
Some = TypeVar("Some")
READ_WHAT_IS_THERE = "Read `x.filled()`, or choose by `x.mask` before computing: NaN times a mask of 0 is still NaN."


class ContractError(AssertionError):
    """A part does not do what the library asks of it: what it does instead, where, and what helps."""


@contextmanager
def told(wrong: str, advice: str) -> Iterator[None]:
    """Say of whatever is raised inside that a part did `wrong`."""
    try:
        yield
    except ContractError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise ContractError(f"{wrong}: it raises {type(error).__name__}: {first}. {advice}") from error


@contextmanager
def copied(part: nn.Module) -> Iterator[tuple[nn.Module, torch.device]]:
    """A copy in float64 and evaluation mode, `stirred`, and where it is; the global noise is as before afterwards."""
    device = next((t.device for own in (part.parameters(), part.buffers()) for t in own), torch.device("cpu"))
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]), torch.enable_grad():
        torch.manual_seed(0)
        yield stirred(deepcopy(part)).double().eval(), device


def stirred(part: nn.Module) -> nn.Module:
    """With small numbers in parameters that are 0 throughout: they would hide whatever is multiplied by them."""
    with torch.no_grad():
        for parameter in part.parameters():
            if not parameter.any():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return part


# Batches


def made_batch(
    lengths: list[int], padding: int, observed: float, *, noise: torch.Generator,
    channels: int | None = None, vocabulary: int | None = None, end: int | None = None,
) -> Sequence:  # fmt: skip
    """One batch, see `made_batches`: its lengths, padding behind the longest, and the share of steps observed."""
    long, steps = torch.tensor(lengths), max(lengths) + padding
    if vocabulary is None:
        values = torch.rand(len(lengths), steps, channels or 0, generator=noise, dtype=torch.float64)
    else:
        others = torch.tensor([token for token in range(vocabulary) if token != end])
        values = others[torch.randint(len(others), (len(lengths), steps), generator=noise)]
        if end is not None:
            values[long > 0, long[long > 0] - 1] = end
    seen = None if observed == 1 else torch.rand(len(lengths), steps, generator=noise) < observed
    return Sequence(values, long, seen)


def made_batches(
    *, channels: int | None = None, vocabulary: int | None = None, end: int | None = None, longest: int = 8
) -> list[Sequence]:
    """The batches that parts are verified on, one for each of `SHAPES`, the same at every call.

    Args:
        channels: C of frames [B, T, C], uniform in [0, 1), float64.
        vocabulary: V of tokens [B, T]; one of the two is needed.
        end: the token that every sequence of tokens ends with and holds nowhere else; None for any tokens anywhere.
        longest: steps that no length exceeds.

    Returns:
        A Sequence for each shape.
    """
    noise = torch.Generator().manual_seed(0)
    reads = {"channels": channels, "vocabulary": vocabulary, "end": end}
    return [
        made_batch([min(length, longest) for length in lengths], padding, observed, noise=noise, **reads)
        for lengths, padding, observed in SHAPES
    ]


def chosen(own: Iterable[Some] | None, made: list[Some]) -> list[Some]:
    """The user's own batches, if there are any, else those that are made. Raises ValueError for an empty list."""
    found = made if own is None else list(own)
    if not found:
        raise ValueError("`batches` is empty, so nothing would be verified")
    return found


def junk(x: Sequence, where: Tensor) -> Sequence:
    """NaN, or tokens outside the vocabulary, where [B, T] says so."""
    if x.values.is_floating_point():
        return replace(x, values=torch.where(where[..., None], torch.nan, x.values))
    return replace(x, values=torch.where(where, JUNK, x.values))


def longer(x: Sequence, by: int) -> Sequence:
    """With more padding, which says that it was observed."""
    values = torch.cat([x.values, x.values.new_ones(len(x), by, *x.values.shape[2:])], 1)
    observed = None if x.observed is None else torch.cat([x.observed, x.observed.new_ones(len(x), by)], 1)
    return Sequence(values, x.lengths, observed)


def described(x: Sequence) -> str:
    holes = int((x.valid & ~x.mask).sum())
    return f"a batch of lengths {x.lengths.tolist()} in {x.steps} steps" + (f" with {holes} holes" if holes else "")


def row(x: Sequence, i: int) -> str:
    return f"row {i} (length {int(x.lengths[i])} of {x.steps})"


# Answers: {what is said: [B, ...]} about every row of a batch

Answer = dict[str, Tensor]
Ask = Callable[[Sequence, slice], Answer]  # a batch, and which rows of the first batch it holds


@dataclass(frozen=True)
class Change:
    """What must change no answer: the fault of a part for which it does, when that shows, and what helps."""

    fault: str
    when: str
    advice: str
    x: Sequence
    rows: slice


def changes(x: Sequence) -> Iterator[Change]:
    """What must change nothing of what is said about x."""
    junk_is = "NaN" if x.values.is_floating_point() else f"the token {JUNK}"
    yield Change(
        "says something else every time", "on a second call", "Draw noise in training only: `if self.training`.", x, ALL
    )
    for fault, what, where in (
        ("reads padding", "the values beyond the lengths", ~x.valid),
        ("reads holes", "the values of unobserved steps", ~x.mask),
    ):
        yield Change(fault, f"when {what} were {junk_is}", READ_WHAT_IS_THERE, junk(x, where), ALL)
    yield Change(
        "depends on how far a batch is padded", f"with {MORE} more steps of padding",
        "Pool over the steps of `x.mask` and divide by `x.lengths`; what stands beyond a length is not there.",
        longer(x, MORE), ALL,
    )  # fmt: skip
    for i, length in enumerate(x.lengths.tolist()):
        alone = slice(i, i + 1)
        steps = max(length, min(1, x.steps))  # a model asks nobody about a batch without a step
        seen = None if x.observed is None else x.observed[alone, :steps]
        yield Change(
            "mixes the rows of a batch", f"when row {i} was alone in a batch of {steps} steps",
            "What is said about a row depends on that row only: no statistics over the batch or padding.",
            Sequence(x.values[alone, :steps], x.lengths[alone], seen), alone,
        )  # fmt: skip


def check_shape(what: str, value: Tensor, shape: tuple[int, ...], letters: str, x: Sequence) -> None:
    if tuple(value.shape) != shape:
        raise ContractError(
            f"{what} of shape {list(value.shape)} for {described(x)}: it must be {letters}, here {list(shape)}"
        )


def check_same(what: str, found: Answer, expected: Answer, x: Sequence, when: str, advice: str) -> None:
    """Raise ContractError where `found` is not `expected`; the shorter of two last dimensions is compared."""
    for name, before in expected.items():
        width = min(before.shape[-1], found[name].shape[-1])
        now, before = found[name][..., :width], before[..., :width]
        tolerance = 1e-10 if now.dtype == before.dtype == torch.float64 else 1e-4
        wrong = ~((now - before).abs() <= tolerance * before.abs().clamp(min=1))
        if wrong.any():
            at = tuple(wrong.nonzero()[0].tolist())
            raise ContractError(
                f"{what}: its {name} for {row(x, at[0])}, at {list(at[1:])}, went from {before[at].item():.6g} "
                f"to {now[at].item():.6g} {when}. {advice}"
            )


def check_finite(role: str, answer: Answer, x: Sequence) -> None:
    if role == "encoder":
        advice = (
            "A missing item needs a finite answer, too: `x.lengths.clamp(min=1)` to divide by, no maximum of nothing."
        )
    else:
        advice = "Give everything a chance that may be observed, or say in `batches` what may be."
    for name, value in answer.items():
        if not value.isfinite().all():
            i = int((~value.isfinite()).nonzero()[0, 0])
            raise ContractError(
                f"the {name} of your {role} is not finite for {row(x, i)} of {described(x)}: {value[i].tolist()}. "
                + advice
            )


def check_reading(role: str, part: nn.Module, ask: Ask, x: Sequence, inputs: Mapping[str, Tensor]) -> None:
    """A part answers what is there, alike whatever `changes`, and learns from it alone.

    Args:
        role: "encoder" or "decoder".
        part: the copy.
        ask: what it says about a batch.
        x: the batch.
        inputs: what else needs a gradient.
    """
    with told(
        f"your {role} fails on {described(x)}",
        "It is called in float64: keep constants in buffers. A length of 0 is a missing item.",
    ):
        before = ask(x, ALL)
    check_finite(role, before, x)
    for change in changes(x):
        with told(f"your {role} fails {change.when}", change.advice):
            found = ask(change.x, change.rows)
        expected = {name: value[change.rows] for name, value in before.items()}
        check_same(f"your {role} {change.fault}", found, expected, change.x, change.when, change.advice)
    leaves = {name: p for name, p in part.named_parameters() if p.requires_grad} | dict(inputs)
    clean, dirty = (gradients(squared(ask(view, ALL), x.present), leaves) for view in (x, junk(x, ~x.mask)))
    check_gradients(role, clean, dirty, bool(x.present.any()), described(x))


def squared(answer: Answer, counts: Tensor) -> Tensor:
    """The sum of squares over the rows that count, [B]: every output has a gradient of its own."""
    return torch.stack([torch.where(counts[:, None], value, 0).square().sum() for value in answer.values()]).sum()


def gradients(total: Tensor, leaves: Mapping[str, Tensor], keep: bool = False) -> dict[str, Tensor | None]:
    """Of `total` in each leaf, None where it takes no part; keep: for another gradient of the same graph."""
    if not leaves or not total.requires_grad:
        return dict.fromkeys(leaves)
    found = torch.autograd.grad(total, list(leaves.values()), retain_graph=keep, allow_unused=True)
    return dict(zip(leaves, found, strict=True))


def check_gradients(
    role: str, clean: Mapping[str, Tensor | None], dirty: Mapping[str, Tensor | None], anything: bool, where: str,
    untrained: Iterable[str] = (),
) -> None:  # fmt: skip
    """Every parameter has a finite gradient, the same with junk in what was not observed, and none where nothing was.

    anything: whether an item is there.
    """
    for name, gradient in clean.items():
        other = dirty[name]
        if gradient is None:
            if anything and not any(part in name for part in untrained):
                raise ContractError(
                    f"{name} of your {role} gets no gradient from {where}: let it take part whatever a batch holds, "
                    "compute nothing under `no_grad` or on `.detach()`ed values, or set requires_grad=False"
                )
            continue
        if not gradient.isfinite().all():
            raise ContractError(
                f"{name} of your {role} has a gradient that is not finite on {where}: `torch.where` hides a NaN or an "
                "infinity from the result, not from the gradient; fill the values before you compute with them"
            )
        if not anything and gradient.any():
            raise ContractError(f"{name} of your {role} has a gradient, although nothing was observed in {where}")
        if other is None or not torch.allclose(other, gradient, rtol=0, atol=1e-10):
            raise ContractError(
                f"{name} of your {role} learns from padding or holes: on {where} its gradient is another one when what "
                f"was not observed holds junk. {READ_WHAT_IS_THERE}"
            )
