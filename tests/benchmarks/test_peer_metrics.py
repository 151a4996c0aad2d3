"""What any model writes is judged by the same measures; tensors of one length come back as what they were made of."""

import pytest
import torch

from benchmarks.peers.fixed_length import FixedLength, silence
from benchmarks.peers.metrics import Drawn, effective, verdict
from mmseqvae.config import LogMelConfig
from mmseqvae.evaluation.judges.speech_judges import SpeechJudges
from mmseqvae.features.arrays import Standard
from mmseqvae.features.log_mel import LogMel
from mmseqvae.sequence import Sequence
from mmseqvae.tokenizers.characters import Tokenizer

WORDS = ["low", "high"]
QUIET = torch.full((4,), -2.0)


class Ear:
    """Hears which half of the four channels is louder."""

    classes = WORDS

    def labels(self, mels: Sequence) -> list[str]:
        return ["low" if item[:, :2].mean() > item[:, 2:].mean() else "high" for item in mels.items()]


class Voice:
    """Hears whether the loudest frame is above 5."""

    classes = ["loud", "soft"]  # noqa: RUF012

    def labels(self, mels: Sequence) -> list[str]:
        return ["loud" if item.max() > 5 else "soft" for item in mels.items()]


@pytest.fixture
def front_end() -> LogMel:
    config = LogMelConfig(sample_rate=800, n_fft=32, hop_length=10, n_mels=4, dither=0)
    return LogMel(config, Standard(torch.zeros(4), torch.ones(4)))


@pytest.fixture
def fixed() -> FixedLength:
    return FixedLength(Tokenizer.train(WORDS), QUIET, frames=8, characters=5)


def spoken(words: list[str], seed: int = 0, level: float = 3.0) -> Sequence:
    generator = torch.Generator().manual_seed(seed)
    items = []
    for word in words:
        item = 0.1 * torch.randn(5, 4, generator=generator)
        item[:, :2] += level if word == "low" else 0
        item[:, 2:] += level if word == "high" else 0
        items.append(item)
    return Sequence.from_list(items)


def test_tensors_of_one_length_come_back_as_what_they_were(fixed):
    recordings = Sequence(torch.randn(3, 10, 4) + 2, torch.tensor([5, 8, 10]))
    back = fixed.recordings(fixed.audio(recordings))
    assert back.lengths.tolist() == [5, 8, 8]  # what is longer is cropped
    for before, after in zip(recordings.items(), back.items(), strict=True):
        torch.testing.assert_close(after, before[:8])
    onehot = fixed.text(WORDS)
    assert onehot.shape == (2, 5, fixed.tokenizer.vocabulary_size)
    assert (onehot.sum(-1) == 1).all()
    assert fixed.words(3 * onehot - 1) == WORDS
    assert fixed.shapes == {"audio": (8, 4), "text": (5, fixed.tokenizer.vocabulary_size)}


def test_what_is_all_silence_keeps_a_frame_and_what_is_too_long_is_refused(fixed):
    assert fixed.recordings(QUIET.expand(2, 8, 4)).lengths.tolist() == [1, 1]
    with pytest.raises(ValueError, match="'highhigh' and its end take 9 tokens, there is room for 5"):
        fixed.text(["highhigh"])


def test_a_word_ends_where_its_first_end_stands(fixed):
    letters = [fixed.tokenizer.encode(character)[0] for character in "low"]
    tokens = torch.tensor([*letters[:2], fixed.tokenizer.end_id, letters[2], letters[2]])
    assert fixed.words(torch.nn.functional.one_hot(tokens)[None].float()) == ["lo"]


def test_silence_is_the_frame_of_no_sound(front_end):
    assert silence(front_end).tolist() == pytest.approx([torch.tensor(1e-10).log().item()] * 4, rel=1e-4)


def test_figures_are_those_of_what_was_drawn(front_end):
    texts = ["low", "low", "high", "high"]
    recordings = spoken(texts, seed=1)
    said = spoken(["low", "low", "high", "low"], seed=2)  # the last is wrong
    pairs = {
        "prior": (["low", "high", "lo", "high"], spoken(["low", "low", "low", "high"])),
        "fitted": (["low", "high", "low", "high"], spoken(["low", "high", "low", "high"])),
    }
    drawn = Drawn(texts, said, ["low", "low", "high", "hig"], spoken(["low", "high", "high", "high"], level=9.0), pairs)
    found = verdict(drawn, front_end, recordings, texts, SpeechJudges(Ear(), Voice(), {}))
    assert found["text_to_audio"]["hits"] == 3
    assert found["audio_to_text"]["hits"] == 3
    assert found["audio_to_audio"]["hits"] == 3
    assert found["speaker_kept"]["hits"] == 0  # all repeated louder
    assert found["joint"]["prior"]["coherence"]["hits"] == 2
    assert found["joint"]["fitted"]["coherence"]["value"] == 1.0
    assert found["joint"]["fitted"]["effective_words"] == pytest.approx(2)
    # "high" has one correct draw, hence no variety; "low" has two.
    low = [said.values[:2], recordings.values[:2]]
    spread = [float((part[0] - part[1]).norm()) for part in low]
    assert found["diversity"] == pytest.approx(0.5 * spread[0] / spread[1], rel=1e-5)


def test_variety_is_measured_without_the_frame_noise(front_end):
    texts = ["low", "low", "high", "high"]
    real = spoken(texts, seed=1)
    drawn = Drawn(texts, spoken(texts, seed=5), texts, real, {}, plain=real)
    found = verdict(drawn, front_end, real, texts, SpeechJudges(Ear(), Voice(), {}))
    assert found["diversity"] == pytest.approx(1)
    assert found["speaker_kept"]["value"] == 1.0


def test_effective_words_ignore_what_is_no_word():
    assert effective(["low", "high", "lo", "lo"], WORDS) == pytest.approx(2)
    assert effective(["lo"], WORDS) == 0.0
