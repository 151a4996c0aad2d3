"""Networks of the user's own: trained by fit, killed, resumed, loaded; they generate, embed and are evaluated."""

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

import mmseqvae
from mmseqvae.config import ModelConfig, TrainingConfig
from mmseqvae.data import Corpus, prepare
from mmseqvae.decoding import FrameSampling
from mmseqvae.distributions.gaussian import Gaussian
from mmseqvae.encoders import FrameEncoder, TokenEncoder
from mmseqvae.evaluation.summary import evaluate
from mmseqvae.fusion import mopoe
from mmseqvae.modality import Modality
from mmseqvae.model import Batch, MultimodalVAE
from mmseqvae.objectives import Terms, elbo
from mmseqvae.pipeline.build import CorpusInfo
from mmseqvae.priors.base import Prior
from mmseqvae.reporting.run_report import report
from mmseqvae.sequence import Sequence
from mmseqvae.training.lightning_module import TrainingModule
from mmseqvae.training.trainer import fit

LATENT = 4
QUICK = TrainingConfig(epochs=3, batch_size=8, warm_up=2, threads=1, seed=3)


class ConvolutionalEncoder(nn.Module):
    """A convolution over time in front of a recurrent encoder."""

    def __init__(self, channels: int, latent: int) -> None:
        super().__init__()
        self.latent = latent
        self.convolution = nn.Conv1d(channels, 6, 3, padding=1)
        self.encoder = FrameEncoder(6, latent, hidden=5)

    def forward(self, x: Sequence) -> Gaussian:
        frames = self.convolution(x.filled().transpose(1, 2)).transpose(1, 2).relu()
        return self.encoder(Sequence(frames, x.lengths, x.observed))


class WordDecoder(nn.Module):
    """Tokens that are independent given z and their number: p(x | z) = prod_t softmax(W_t z)[x_t]."""

    writes = "tokens"

    def __init__(self, vocabulary: int, end: int, max_steps: int, latent: int) -> None:
        super().__init__()
        self.latent, self.end, self.max_steps = latent, end, max_steps
        self.logits = nn.Linear(latent, max_steps * vocabulary)

    def per_step(self, z: Tensor) -> Tensor:
        return self.logits(z).unflatten(-1, (self.max_steps, -1)).log_softmax(-1)

    def log_prob(self, z: Tensor, x: Sequence) -> Tensor:
        nats = self.per_step(z)[..., : x.steps, :]
        chosen = nats.gather(-1, x.filled().expand(*nats.shape[:-1])[..., None]).squeeze(-1)
        return torch.where(x.mask, chosen, 0)

    def sample(self, z: Tensor, how: Any, generator: torch.Generator | None = None) -> Sequence:
        tokens = self.per_step(z).argmax(-1)
        ended = (tokens == self.end).int()
        lengths = torch.where(ended.any(1), ended.argmax(1) + 1, self.max_steps)
        return Sequence(tokens, lengths)


class HeavyTails(Prior):
    """A prior of the user's own, with a weight that is trained: Student-like, a Gaussian of learnt width."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent
        self.log_std = nn.Parameter(torch.zeros(latent))

        self.calls: list[str] = []

    items_needed = 5

    def attach(self, encode: Any) -> None:
        self.calls.append("attach")

    def start(self, items: Any) -> None:
        self.calls.append(f"start with {len(items['text'])} {sorted(items)}")

    def refresh(self) -> int:
        self.calls.append("refresh")
        return 0

    def gaussian(self) -> Gaussian:
        return Gaussian(torch.zeros_like(self.log_std), 2 * self.log_std)

    def log_prob(self, z: Tensor) -> Tensor:
        return self.gaussian().log_prob(z)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return self.gaussian().rsample(n, generator)


class MeanOfTwo(nn.Module):
    """A fusion of the user's own, with a weight: mopoe's mixture after a learnt shift of all experts."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, experts: Gaussian, present: Tensor) -> Any:
        return mopoe(Gaussian(experts.mean + self.shift, experts.logvar), present)


def own_model(info: CorpusInfo) -> MultimodalVAE:
    text = Modality(
        TokenEncoder(info.vocabulary("text"), LATENT, embedding=3, hidden=4),
        WordDecoder(info.vocabulary("text"), info.end("text"), info.max_steps("text"), LATENT),
    )
    move = Modality(
        ConvolutionalEncoder(info.channels("move"), LATENT),
        mmseqvae.FrameDecoder(
            mmseqvae.distributions.likelihoods.Normal(info.channels("move")), LATENT, max_steps=info.max_steps("move"),
            hidden=5, inputs=4,
        ),
    )  # fmt: skip
    return MultimodalVAE({"text": text, "move": move}, MeanOfTwo(), HeavyTails(LATENT))


def renamed(info: CorpusInfo, text: str, move: str) -> MultimodalVAE:
    """The same networks with other names for what they read and write."""
    model = own_model(info)
    return MultimodalVAE({text: model.modality("text"), move: model.modality("move")})


def rows(words: tuple[str, ...], number: int, seed: int = 0) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    made = []
    for item in range(number):
        word = words[item % len(words)]
        steps = int(random.integers(3, 6))
        move = np.outer(np.sin(np.arange(steps) + item % len(words)), [1.0, -1.0]) + 0.1 * random.normal(
            size=(steps, 2)
        )
        split = "train" if item < number - 8 else "valid"
        made.append({"id": str(item), "text": word, "move": move.astype(np.float32), "split": split})
    return made


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return prepare(rows(("on", "off", "up"), 50), frames=["move"], cache_dir=tmp_path / "cache")


def test_own_parts_train_and_are_found_again_by_the_function(corpus: Corpus, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained = fit(corpus, run, model=own_model, training=QUICK, progress=False)
    assert "mmseqvae" not in (run / "config.json").read_text()  # no code is named
    assert isinstance(prior := trained.model.learnt, HeavyTails)
    assert prior.calls == ["attach", "start with 5 ['move', 'text']", "refresh"]  # before the first of 18 steps
    again = mmseqvae.load(run, model=own_model)
    for name, weight in trained.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight), name
    item = {"text": "off"}
    np.testing.assert_array_equal(again.embed([item]), trained.embed([item]))
    assert again.embed([item]).shape == (1, LATENT)
    made = again.generate(text="off", want="move", samples=3, seed=1)["move"]
    assert [m.shape[1] for m in made] == [2, 2, 2]
    assert all(isinstance(text, str) for text in again.generate(move=made[0], want="text")["text"])
    assert len(again.sample(4, seed=0)["text"]) == 4
    ahead = again.forecast([{"move": made[0]}], 2, samples=5, seed=0)["move"]
    assert ahead.samples.shape == (5, 1, 2, 2)
    figures = evaluate(again, corpus.datasets["valid"], draws=5, progress=False)
    assert np.isfinite(figures["likelihood"]["priors"]["learnt"]["nll"])
    assert (tmp_path / "pictures" / "latent.png") in report(again, corpus.datasets["valid"], tmp_path, progress=False)


def test_a_killed_training_of_own_parts_goes_on_to_the_bit(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(corpus, tmp_path / "whole", model=own_model, training=QUICK, progress=False)
    seed_the_epoch = TrainingModule.on_train_epoch_start

    def power_cut(self: TrainingModule) -> None:
        if self.current_epoch == 2:
            raise RuntimeError("power cut")
        seed_the_epoch(self)

    monkeypatch.setattr(TrainingModule, "on_train_epoch_start", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(corpus, tmp_path / "cut", model=own_model, training=QUICK, progress=False)
    monkeypatch.undo()
    resumed = fit(corpus, tmp_path / "cut", model=own_model, training=QUICK, progress=False)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name


def test_a_model_itself_is_trained_in_place_and_gets_weights_back(corpus: Corpus, tmp_path: Path) -> None:
    info = CorpusInfo(corpus.front_ends, {"text": 6, "move": 8})
    torch.manual_seed(0)
    model = own_model(info)
    before = model.state_dict()["modalities.move.encoder.convolution.weight"].clone()
    trained = fit(corpus, tmp_path / "run", model=model, training=QUICK, progress=False)
    assert trained.model is model
    assert not torch.equal(model.state_dict()["modalities.move.encoder.convolution.weight"], before)
    other = own_model(info)
    loaded = mmseqvae.load(tmp_path / "run", model=other)
    assert loaded.model is other
    np.testing.assert_array_equal(loaded.embed(text="on"), trained.embed(text="on"))


def test_an_own_run_says_what_it_needs(corpus: Corpus, tmp_path: Path) -> None:
    fit(corpus, tmp_path / "run", model=own_model, training=QUICK, progress=False)
    for wrong in (None, ModelConfig()):
        with pytest.raises(ValueError, match=r"user's own: load\(run, model=F\)"):
            mmseqvae.load(tmp_path / "run", model=wrong)

    def wider(info: CorpusInfo) -> MultimodalVAE:
        model = own_model(info)
        model.modality("move").encoder.convolution = nn.Conv1d(2, 7, 3)  # type: ignore[union-attr]
        return model

    with pytest.raises(ValueError, match="does not fit"):
        mmseqvae.load(tmp_path / "run", model=wider)
    with pytest.raises(ValueError, match="other settings or data"):
        fit(corpus, tmp_path / "run", model=wider, training=QUICK, progress=False)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda info: own_model(info).modalities, "a function that returns one, got"),
        (
            lambda info: MultimodalVAE({"text": own_model(info).modality("text")}),
            r"does not know the columns move: train on corpus.only\('text'\)",
        ),
        (
            lambda info: renamed(info, "text", "film"),
            "the model knows film, which the corpus lacks; it has text, move",
        ),
        (
            lambda info: renamed(info, "move", "text"),
            "the decoder of move writes tokens, but move holds frames",
        ),
        (lambda info: info.channels("text"), "text is no column of frames"),
        (lambda info: info.vocabulary("speech"), "speech is no column of tokens"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_fit_is_told_first(build: Any, message: str, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fit(corpus, tmp_path / "run", model=build, training=QUICK, progress=False)
    assert not (tmp_path / "run").exists()


def test_parts_of_a_corpus_train_alone(corpus: Corpus, tmp_path: Path) -> None:
    def text_alone(info: CorpusInfo) -> MultimodalVAE:
        decoder = WordDecoder(info.vocabulary("text"), info.end("text"), info.max_steps("text"), 2)
        return MultimodalVAE({"text": Modality(TokenEncoder(info.vocabulary("text"), 2, hidden=4), decoder)})

    trained = fit(corpus.only("text"), tmp_path / "run", model=text_alone, training=QUICK, progress=False)
    assert list(trained.front_ends) == ["text"]
    assert list(trained.sample(2)) == ["text"]
    with pytest.raises(ValueError, match="the corpus has no speech"):
        corpus.only("speech")


def test_an_encoder_or_decoder_must_say_its_latent_and_what_it_writes() -> None:
    with pytest.raises(ValueError, match="Linear needs an attribute `latent`"):
        Modality(nn.Linear(2, 2))
    silent = WordDecoder(4, 0, 3, 2)
    silent.writes = "words"  # type: ignore[assignment]
    with pytest.raises(ValueError, match='needs an attribute `writes`, which is "tokens" or "frames"'):
        Modality(None, silent)


def test_a_decoder_that_cannot_complete_says_so(corpus: Corpus, tmp_path: Path) -> None:
    trained = fit(corpus, tmp_path / "run", model=own_model, training=QUICK, progress=False)
    with pytest.raises(ValueError, match="the decoder of text has no method `complete`"):
        trained.forecast([{"text": "o"}], 1, want="text")
    with pytest.raises(ValueError, match="text is drawn with TokenSampling, got FrameSampling"):
        trained.sample(1, decode={"text": FrameSampling()})


def test_own_callbacks_loggers_and_objectives_are_used(corpus: Corpus, tmp_path: Path) -> None:
    class Counts(lightning.Callback):
        steps = 0

        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            self.steps += 1

    calls = []

    def mine(model: MultimodalVAE, batch: Batch, **how: Any) -> Terms:
        calls.append(how["beta"])
        return elbo(model, batch, **how)

    counts = Counts()
    fit(corpus, tmp_path / "run", model=own_model, objective=mine, training=QUICK, callbacks=[counts],
        logger=CSVLogger(tmp_path / "csv"), progress=False)  # fmt: skip
    assert counts.steps == 3 * 6  # 42 items in batches of 8
    assert len(calls) > counts.steps
    assert list((tmp_path / "csv").rglob("metrics.csv"))
    assert not (tmp_path / "run" / "tensorboard").exists()
