"""Figures against exact values: a model whose likelihood is known in closed form, and judges that cannot be fooled."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mmseqvae.config import LogMelConfig, ModelConfig
from mmseqvae.data import SequenceDataset
from mmseqvae.data.dataset import Column
from mmseqvae.evaluation.cross_generation import cross_generation
from mmseqvae.evaluation.summary import distortion, evaluate, heard_again, likelihood, share_to_dict, written
from mmseqvae.features.arrays import FrameArrays, Standard
from mmseqvae.features.log_mel import LogMel
from mmseqvae.metrics import Share
from mmseqvae.modality import Modality
from mmseqvae.model import MultimodalVAE
from mmseqvae.pipeline.build import build
from mmseqvae.pipeline.trained_model import Trained
from mmseqvae.priors.base import StandardNormal
from mmseqvae.priors.mixtures import LearntMixture
from mmseqvae.sequence import Sequence
from mmseqvae.tokenizers.characters import Tokenizer
from tests.exact import LOG_P, B, LinearDecoder, LinearEncoder, S, W, X

WORDS = ("ab", "ba")
LOG_MEL = LogMelConfig(sample_rate=4000, n_fft=128, hop_length=64, n_mels=15)
SMALL = ModelConfig(
    latent=3,
    token_embedding=4,
    token_encoder=4,
    token_decoder=4,
    frame_encoder=4,
    frame_inputs=4,
    frame_decoder=4,
    prior="standard",
)


def tone(word: str, seed: int) -> np.ndarray:
    """A low tone for one word, a high one for the other, of some length, with noise."""
    random = np.random.default_rng(seed)
    time = np.arange(int(random.integers(700, 1400))) / LOG_MEL.sample_rate
    wave = 0.3 * np.sin(2 * np.pi * (300 if word == "ab" else 1200) * time)
    return (wave + 0.01 * random.standard_normal(len(time))).astype(np.float32)


def corpus(items: int, first: int = 0, missing: bool = False) -> tuple[Trained, SequenceDataset]:
    words = [WORDS[i % 2] for i in range(items)]
    front_end, tokenizer = LogMel(LOG_MEL), Tokenizer.train(WORDS)
    mels = [front_end.read(tone(word, first + i)) for i, word in enumerate(words)]
    front_end.fit(mels)
    audio = Column.of([*mels[:-1], None if missing else mels[-1]], torch.zeros(0, 15))
    audio = Column(audio.flat, audio.starts, audio.lengths, front_end.fitted)
    text = Column.of([tokenizer.encode(word) for word in words], torch.zeros(0, dtype=torch.long))
    front_ends = {"text": tokenizer, "audio": front_end}
    longest = {"text": 5, "audio": 40}
    torch.manual_seed(0)
    trained = Trained(build(front_ends, longest, SMALL), front_ends, longest, SMALL)
    return trained, SequenceDataset([str(i) for i in range(items)], words, {"text": text, "audio": audio})


def hear(mels: Sequence) -> list[str]:
    """Which half of the spectrum is louder: right about every tone."""
    middle = [item.mean(0) for item in mels.items()]
    return ["ab" if item[:7].max() > item[7:].max() else "ba" for item in middle]


def points(mels: Sequence) -> torch.Tensor:
    return torch.stack([item.mean(0) for item in mels.items()])


class Perfect(MultimodalVAE):
    """Says and writes what it was given: recordings by heart, at any noise."""

    def __init__(self, dataset: SequenceDataset, say: Callable[[str], str] = str) -> None:
        super().__init__(corpus(2)[0].model.modalities)  # type: ignore[arg-type]
        self.batch = dataset.__getitems__(range(len(dataset)))
        self.rows = {word: [i for i in range(len(dataset)) if dataset.labels[i] == say(word)] for word in WORDS}

    def generate(self, batch, want=None, given=None, samples=1, decode=None, generator=None):  # type: ignore[no-untyped-def]
        if given == ["text"]:
            asked = ["ab" if row[0] == 2 else "ba" for row in batch["text"].values]
            rows = torch.tensor([self.rows[word][s % len(self.rows[word])] for word in asked for s in range(samples)])
            return {"audio": self.batch["audio"][rows]}
        if want == ["text"]:
            tones = [item[:, :7].mean() > item[:, 7:].mean() for item in batch["audio"].items()]
            return {"text": self.batch["text"][torch.tensor([0 if low else 1 for low in tones])]}
        return {"audio": batch["audio"]}

    def sample(self, n, want=None, prior=None, decode=None, generator=None):  # type: ignore[no-untyped-def]
        rows = torch.arange(n) % len(self.batch["text"])
        return {"text": self.batch["text"][rows], "audio": self.batch["audio"][rows.flip(0)]}


def test_likelihood_of_a_model_known_in_closed_form() -> None:
    """With the exact posterior every weight is p(x): no variance, every draw effective, the bound tight."""
    modalities = {
        name: Modality(LinearEncoder(W[name], B[name], S[name]), LinearDecoder(W[name], B[name], S[name]))  # type: ignore[arg-type]
        for name in W
    }
    model = MultimodalVAE(modalities).double()
    ends = {
        name: FrameArrays(len(B[name]), Standard(torch.zeros(len(B[name])), 2 * torch.ones(len(B[name])))) for name in W
    }
    trained = Trained(model, dict(ends), dict.fromkeys(W, 1), ModelConfig(latent=2))
    columns = {}
    for name in W:
        flat = X[name].repeat(3, 1).numpy()
        columns[name] = Column(flat, np.arange(3), np.ones(3, np.int64))

    class Doubled(SequenceDataset):
        def __getitems__(self, items):  # type: ignore[no-untyped-def]
            return {n: Sequence(s.values.double(), s.lengths) for n, s in super().__getitems__(items).items()}

    found = likelihood(trained, Doubled(["a", "b", "c"], [None] * 3, columns), draws=7, progress=False)
    exact = -LOG_P[("one", "two")]
    prior = found["priors"]["standard"]
    assert found["priors"].keys() == {"standard"}
    assert prior["prior"] == "N(0, I)"
    assert prior["nll"] == pytest.approx(exact, abs=1e-5)
    assert prior["standard_error"] == pytest.approx(0, abs=1e-5)  # three equal items
    assert prior["nll_per_step"] == pytest.approx(exact / 2, abs=1e-5)  # one frame of each modality
    assert prior["effective_draws"] == pytest.approx(7, abs=1e-4)
    assert prior["nll_own_units"] == pytest.approx(exact + 5 * np.log(2), abs=1e-5)  # five channels, each twice as wide
    assert found["elbo"] <= -exact + 1.5


def test_evaluate_counts_only_what_is_there() -> None:
    trained, dataset = corpus(7, missing=True)
    with torch.no_grad():
        trained.model.fit_prior(torch.randn(40, 3), 2)
    found = evaluate(trained, dataset, draws=6, progress=False)
    bound = found["likelihood"]
    assert bound["priors"].keys() == {"standard", "fitted"}
    assert "mixture of 2" in bound["priors"]["fitted"]["prior"]
    assert bound["priors"]["standard"]["standard_error"] > 0.1
    assert -bound["elbo"] > bound["priors"]["standard"]["nll"]  # more draws, a tighter bound
    assert bound["steps_an_item"]["audio"] == pytest.approx(dataset.lengths("audio").sum() / 7)
    assert found["tokens"]["text"]["from audio"]["exact"]["of"] == 6  # the seventh has no recording
    assert found["latent"]["kl"].keys() == found["latent"]["active_units"].keys() == {"joint", "text", "audio"}
    assert bound["scale_floor_hits"] == {"audio": 0.0}
    assert found == evaluate(trained, dataset, draws=6, progress=False)  # the seed decides
    with pytest.raises(ValueError, match="no items"):
        evaluate(trained, SequenceDataset([], [], {}))


def test_a_learnt_prior_has_its_own_row_and_its_own_bound() -> None:
    """A learnt mixture that happens to be N(0, I) gives the figures of N(0, I), its KL by draws."""
    trained, dataset = corpus(6)
    before = evaluate(trained, dataset, draws=200, progress=False)
    prior = LearntMixture(2, 3)
    for weight in prior.parameters():
        weight.data.zero_()
    trained.model.learnt = prior
    found = evaluate(trained, dataset, draws=200, progress=False)
    rows = found["likelihood"]["priors"]
    assert rows.keys() == {"standard", "learnt"}
    assert rows["learnt"]["prior"] == "mixture of 2 learnt with the model"
    assert rows["learnt"]["nll"] == pytest.approx(rows["standard"]["nll"], abs=1e-4)
    assert found["likelihood"]["elbo"] == pytest.approx(before["likelihood"]["elbo"], abs=0.2)
    assert found["latent"]["kl"]["joint"] == pytest.approx(before["latent"]["kl"]["joint"], abs=0.3)
    prior.means.data += 2  # another prior, another bound
    again = evaluate(trained, dataset, draws=200, progress=False)["likelihood"]
    assert again["priors"]["learnt"]["nll"] > rows["learnt"]["nll"] + 1
    assert again["elbo"] < before["likelihood"]["elbo"] - 1


def test_padding_and_order_do_not_change_the_latent() -> None:
    trained, dataset = corpus(6)
    found = evaluate(trained, dataset, draws=2, progress=False)["latent"]["kl"]["joint"]
    batches = [trained.model.posterior(dataset[i]).kl().sum() for i in range(6)]
    assert found == pytest.approx(float(torch.stack(batches).detach().mean()), rel=1e-4)


def test_scale_floor_is_reported() -> None:
    trained, dataset = corpus(4)
    decoder = trained.model.modalities.decoder("audio")
    with torch.no_grad():
        decoder.likelihood.log_scale[:5] = -100.0  # type: ignore[index, union-attr]
    assert likelihood(trained, dataset, 2, progress=False)["scale_floor_hits"]["audio"] == pytest.approx(5 / 15)


def test_a_perfect_model_is_found_perfect_and_its_copies_are_seen() -> None:
    trained, train = corpus(20)
    _, test = corpus(12, first=100)
    trained.model = Perfect(train)
    found = cross_generation(trained, test, train, hear, hear, points, draws=8, joint=20, progress=False)
    for noise in ("noise 0", "noise 0.5", "noise 1"):
        for version in ("log_mel", "wav"):  # a tone is still that tone after Griffin-Lim
            assert found["text_to_audio"][noise][version]["value"] == 1
            assert found["text_to_audio"][noise][version]["of"] == 16
    assert found["audio_to_text"]["exact"]["value"] == 1
    assert found["audio_to_text"]["character_error_rate"] == 0
    assert found["audio_to_audio"]["digit_kept"]["wav"]["value"] == 1
    assert found["variety"]["copying"]["distance_ratio"] == 0  # it replays its training set
    assert found["variety"]["copying"]["closer_than_real"]["value"] == 1
    assert found["variety"]["speakers"] == {"ab": 8, "ba": 8}
    assert 0.3 < found["variety"]["diversity"] < 3
    # its pairs are shuffled: low tones stand beside the other word
    assert found["joint"]["standard"]["coherence"]["log_mel"]["value"] == 0
    assert found["joint"]["standard"]["effective_words"] == pytest.approx(2)
    assert found["joint"].keys() == {"standard", "small"}


def test_a_model_that_says_the_other_word_is_found_out() -> None:
    trained, train = corpus(8)
    trained.model = Perfect(train, say=lambda word: "ba" if word == "ab" else "ab")
    priors = {"mine": StandardNormal(trained.model.latent)}
    found = cross_generation(
        trained, train, train, hear, hear, points, draws=3, joint=4, waves=False, priors=priors, progress=False
    )
    assert found["joint"].keys() == {"mine"}
    assert found["text_to_audio"]["noise 0.5"] == {"log_mel": share_to_dict(Share(0, 6))}
    assert found["variety"]["diversity"] == 0  # only correct draws have variety
    assert found["variety"]["copying"] is None


def test_modalities_of_the_wrong_kind_are_named() -> None:
    trained, dataset = corpus(2)
    with pytest.raises(ValueError, match="'text' must be audio"):
        cross_generation(trained, dataset, dataset, hear, hear, points, audio="text", text="audio")


def test_distortion_of_a_copy_is_nothing_and_griffin_lim_costs_little() -> None:
    trained, dataset = corpus(6)
    trained.model = Perfect(dataset)
    found = distortion(trained, dataset, "audio", progress=False)
    assert found["reconstruction"] == pytest.approx(0, abs=1e-5)
    assert 0 < found["griffin_lim"] < 5
    assert written(trained, dataset, "text", "audio")["exact"]["hits"] == 6


def test_waveforms_keep_lengths() -> None:
    trained, _ = corpus(5)
    mels = Sequence.from_list([torch.full((n, 15), -5.0) for n in (1, 4, 30)])
    front_end = trained.front_ends["audio"]
    assert isinstance(front_end, LogMel)
    assert heard_again(front_end, mels).lengths.tolist() == [1, 4, 30]


def test_an_empty_share_is_no_number_that_json_lacks() -> None:
    assert share_to_dict(Share(0, 0)) == {"value": None, "low": 0.0, "high": 1.0, "hits": 0, "of": 0}
