"""The judges hear what they were taught, whatever lies in the padding, and come back from disk unchanged."""

import pytest
import torch

from mmseqvae.evaluation.judges.log_mel_classifier import Judge, augment, train_judge
from mmseqvae.sequence import Sequence

CHANNELS = 12


def tones(n: int, seed: int) -> tuple[Sequence, list[str]]:
    """Log-mels with a bright band that is low, high, or moves from low to high; 8 to 16 frames."""
    generator = torch.Generator().manual_seed(seed)
    items, labels = [], []
    for i in range(n):
        steps = int(torch.randint(8, 17, (), generator=generator))
        x = -8 + 0.5 * torch.randn(steps, CHANNELS, generator=generator)
        half = steps // 2
        low, high = [(slice(None), slice(0, 0)), (slice(0, 0), slice(None)), (slice(0, half), slice(half, None))][i % 3]
        x[low, 1:4] += 8
        x[high, 8:11] += 8
        items.append(x)
        labels.append(["low", "high", "rise"][i % 3])
    return Sequence.from_list(items), labels


@pytest.fixture(scope="module")
def judge() -> Judge:
    return train_judge(*tones(96, seed=0), seed=0, epochs=12, batch=16)


def test_a_judge_learns_and_generalises(judge):
    features, labels = tones(60, seed=1)
    assert sum(a == b for a, b in zip(judge.labels(features), labels, strict=True)) >= 58
    assert judge.labels(features) == [judge.classes[i] for i in judge.logits(features).argmax(1).tolist()]
    expected = judge.output(judge.penultimate(features))
    torch.testing.assert_close(judge.logits(features), expected)


def test_padding_and_company_change_nothing(judge):
    features, _ = tones(9, seed=2)
    alone = torch.cat([judge.logits(Sequence.from_list([item])) for item in features.items()])
    padded = torch.full((9, features.steps + 7, CHANNELS), torch.nan)
    padded[:, : features.steps] = features.values
    padded[~Sequence(padded, features.lengths).valid] = torch.nan
    torch.testing.assert_close(judge.logits(features), alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(judge.logits(Sequence(padded, features.lengths)), alone, atol=1e-5, rtol=1e-5)


def test_holes_are_not_heard(judge):
    features, _ = tones(3, seed=3)
    observed = features.valid.clone()
    observed[:, 2] = False
    other = features.values.clone()
    other[:, 2] = torch.nan
    torch.testing.assert_close(
        judge.logits(Sequence(other, features.lengths, observed)),
        judge.logits(Sequence(features.values, features.lengths, observed)),
    )


def test_empty_items_get_a_constant_answer(judge):
    missing = judge.logits(Sequence(torch.zeros(2, 0, CHANNELS), torch.zeros(2, dtype=torch.long)))
    beside = judge.logits(tones(2, seed=4)[0].where(torch.tensor([True, False])))
    assert missing.isfinite().all()
    torch.testing.assert_close(beside[1], missing[0])
    assert judge.labels(Sequence(torch.zeros(0, 3, CHANNELS), torch.zeros(0, dtype=torch.long))) == []


def test_the_seed_decides_and_the_global_state_stays():
    features, labels = tones(24, seed=5)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (train_judge(features, labels, seed=s, epochs=2, batch=8) for s in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.output.weight, other.output.weight)


def test_saved_and_loaded_judges_agree(judge, tmp_path):
    judge.save(tmp_path / "digits")
    features, _ = tones(9, seed=6)
    loaded = Judge.load(tmp_path / "digits")
    assert torch.equal(loaded.logits(features), judge.logits(features))
    assert sorted(p.name for p in (tmp_path / "digits").iterdir()) == ["judge.json", "judge.safetensors"]
    config = tmp_path / "digits" / "judge.json"
    config.write_text(config.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(ValueError, match="format version 9"):
        Judge.load(tmp_path / "digits")


def test_augmented_recordings_stay_finite_and_keep_their_shape_in_time():
    features, _ = tones(30, seed=7)
    padded = Sequence(features.values.clone(), features.lengths)
    padded.values[~padded.valid] = torch.nan
    heard = augment(padded, torch.Generator().manual_seed(0)).check()
    ratio = heard.lengths / features.lengths
    assert ratio.min() > 0.5
    assert ratio.max() < 2.5
    assert heard.lengths.float().std() > 0
    again = augment(padded, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(heard.items(), again.items(), strict=True))


def test_bad_input_is_named():
    features, labels = tones(6, seed=8)
    with pytest.raises(ValueError, match="6 items need as many labels, got 5"):
        train_judge(features, labels[:5])
    with pytest.raises(ValueError, match="at least two classes"):
        train_judge(features, ["one"] * 6)
    with pytest.raises(ValueError, match="item 2 is empty"):
        train_judge(features.where(torch.arange(6) != 2), labels)
    with pytest.raises(ValueError, match=r"\[B, T, 12\]"):
        Judge(["a", "b"], CHANNELS).logits(Sequence(torch.zeros(1, 3, 5), torch.tensor([3])))
