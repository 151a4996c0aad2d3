"""Parts hidden in training: what is hidden, what is left, and that nobody reads or scores it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmseqvae.config import ModelConfig, ObjectiveConfig, TrainingConfig
from mmseqvae.data import prepare
from mmseqvae.objectives import elbo
from mmseqvae.pipeline.build import build
from mmseqvae.sequence import Sequence, step_mask
from mmseqvae.training.lightning_module import TrainingModule
from mmseqvae.training.span_masking import mask_spans, random_spans
from mmseqvae.training.trainer import fit
from tests.exact import ppca, ppca_batch


def test_every_kind_of_part_has_its_share() -> None:
    """Of 10 steps: a quarter of parts ends there, a quarter begins at the first, and any length is as likely."""
    n, steps = 40_000, 10
    hide = random_spans(torch.full((n,), steps), steps)
    size = hide.sum(1)
    first, last = hide.int().argmax(1), steps - 1 - hide.flip(1).int().argmax(1)
    stretch = (size == last - first + 1) & (size > 0)
    prefixes = stretch & (first > 0) & (last == steps - 1)
    ends = torch.bincount(size[prefixes], minlength=steps)[1:steps] / n
    # 1/4 of each length 1..9 by kind, the same again / (free + 1) from the middle, and single steps by chance
    expected = torch.tensor([(1 / 4 + 1 / 4 / (steps - long + 1)) / 9 for long in range(1, steps)])
    assert ((ends - expected) >= -5 * (expected / n).sqrt()).all()
    assert (ends - expected)[2:].abs().max() < 0.01
    assert (stretch & (first == 0)).double().mean() > 0.25
    assert (~stretch).double().mean() > 0.15


def test_something_is_left_of_each_and_short_ones_stay_whole() -> None:
    lengths = torch.randint(0, 9, (500,))
    before = torch.rand(500, 9) < 0.8
    x = Sequence(torch.randn(500, 9, 2), lengths, before)
    after = mask_spans({"x": x}, 1.0)["x"]
    assert torch.equal(after.present, x.present)
    assert torch.equal(after.lengths, lengths)
    assert not (after.mask & ~x.mask).any()
    short = lengths < 3
    assert torch.equal(after.mask[short], x.mask[short])
    assert (after.mask.sum(1) < x.mask.sum(1))[lengths > 5].double().mean() > 0.8


def test_the_share_is_kept_and_nothing_else_is_touched() -> None:
    x = Sequence(torch.randn(4000, 20, 1), torch.full((4000,), 20))
    assert mask_spans({"x": x}, 0.0)["x"] is x
    holed = mask_spans({"x": x}, 0.3)["x"].mask.sum(1) < 20
    assert holed.double().mean() == pytest.approx(0.3, abs=0.04)
    label = Sequence(torch.zeros(5, 2).long(), torch.full((5,), 2))
    assert mask_spans({"label": label}, 1.0)["label"] is label


def test_the_bound_is_that_of_what_is_left() -> None:
    """Hiding all of a modality's only steps in the exact model leaves the likelihood of the other."""
    vae, batch = ppca(), ppca_batch()
    hidden = {**batch, "two": batch["two"].hiding(torch.ones(1, 1).bool())}
    found = []
    for given in (hidden, ppca_batch(names=("one",)), batch):
        torch.manual_seed(0)
        found.append(elbo(vae, given).elbo)
    torch.testing.assert_close(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_known_lengths_end_with_the_last_step_that_was_observed() -> None:
    observed = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]]).bool()
    x = Sequence(torch.zeros(4, 4, 1), torch.tensor([4, 4, 2, 3]), observed)
    assert x.known_lengths.tolist() == [3, 0, 2, 3]
    assert Sequence(x.values, x.lengths).known_lengths.tolist() == [4, 4, 2, 3]
    ahead = x.extended(2)
    assert ahead.known_lengths.tolist() == [3, 0, 2, 3]
    assert ahead.lengths.tolist() == [6, 6, 4, 5]
    assert torch.equal(ahead.mask[:, :4], x.mask)
    assert torch.equal(x.hiding(step_mask(torch.full((4,), 1), 4)).mask, x.mask & torch.tensor([0, 1, 1, 1]).bool())


def test_frames_of_nan_are_holes() -> None:
    values = torch.randn(2, 3, 2)
    whole = Sequence(values, torch.tensor([3, 2]))
    assert whole.without_nans() is whole
    values[0, 1] = torch.nan
    values[1, 2] = torch.nan  # in the padding
    assert whole.without_nans().mask.tolist() == [[True, False, True], [True, True, False]]


# ------------------------------------------------------------------------------------------------- from data to model


def pulses(values: float = 1.0) -> list[dict[str, object]]:
    """Ten items, the first with a hole at step 2."""
    random = np.random.default_rng(0)
    made = [values * random.integers(0, 2, (6, 2)).astype(float) for _ in range(10)]
    made[0][2] = np.nan
    return [{"id": str(i), "pulse": pulse, "split": "train"} for i, pulse in enumerate(made)]


def test_holes_go_from_arrays_to_batches(tmp_path: Path) -> None:
    dataset = prepare(pulses(3.0), frames=["pulse"], cache_dir=tmp_path).datasets["train"]
    assert dataset.__getitems__([1, 0])["pulse"].mask.tolist() == [6 * [True], [True, True, False, True, True, True]]
    assert dataset.__getitems__([1, 2])["pulse"].observed is None


def test_bernoulli_frames_are_of_0_and_1(tmp_path: Path) -> None:
    config = ModelConfig(likelihood="bernoulli", latent=2, frame_encoder=3, frame_decoder=3, frame_inputs=3)
    binary = prepare(pulses(), frames=["pulse"], cache_dir=tmp_path)
    model = build(binary.front_ends, {"pulse": 6}, config)
    assert model.log_prob(binary.datasets["train"].__getitems__([0, 1]), draws=1).max() < 0  # of counts, not densities
    with pytest.raises(
        ValueError, match="bernoulli is a likelihood of frames of 0 and 1, which those of pulse are not"
    ):
        build(prepare(pulses(3.0), frames=["pulse"], cache_dir=tmp_path).front_ends, {"pulse": 6}, config)


def test_training_hides_what_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of training sees fewer steps, one of validation all."""
    corpus = prepare(pulses(3.0), frames=["pulse"], cache_dir=tmp_path)
    batch = corpus.datasets["train"].__getitems__(range(10))
    config = ModelConfig(latent=2, frame_encoder=3, frame_decoder=3, frame_inputs=3, prior="standard")
    module = TrainingModule(
        build(corpus.front_ends, {"pulse": 6}, config), ObjectiveConfig("elbo"), TrainingConfig(span_masking=1.0), {}, 1
    )
    seen: list[int] = []
    whole = module.terms
    monkeypatch.setattr(module, "terms", lambda x: seen.append(int(x["pulse"].mask.sum())) or whole(x))
    module.training_step(batch, 0)
    module.validation_step(batch, 0)
    assert seen[0] < 0.8 * seen[1]
    assert seen[1] == int(batch["pulse"].mask.sum())
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        fit(corpus, tmp_path / "run", training=TrainingConfig(span_masking=1.5))
