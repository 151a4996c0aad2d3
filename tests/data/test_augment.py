"""Augmentation: what encoders read, what decoders are scored on, that both follow (seed, epoch, item) alone."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from mmseqvae.cli.commands import main
from mmseqvae.config import AugmentConfig, LogMelConfig, ModelConfig, ObjectiveConfig, TrainingConfig, WindowConfig
from mmseqvae.data import Augmented, Corpus, ManifestError, make_loader, prepare
from mmseqvae.data.augment import noisy, stretch
from mmseqvae.data.sampler import BucketBatchSampler
from mmseqvae.features.log_mel import LogMel
from mmseqvae.modality import as_read
from mmseqvae.model import MultimodalVAE
from mmseqvae.pipeline.build import build
from mmseqvae.training.lightning_module import TrainingModule
from mmseqvae.training.run_state import settings
from mmseqvae.training.span_masking import mask_spans
from mmseqvae.training.trainer import fit
from tests.data.test_sources import TINY

CONFIG = LogMelConfig(sample_rate=8000, n_fft=256, hop_length=100, n_mels=20)
ALL = AugmentConfig(0.7, 0.0, 10.0, frequency_masks=1, frequency_width=6, time_masks=2, time_width=20, time_share=0.3)
SMALL = ModelConfig(
    latent=3, token_embedding=4, token_encoder=4, token_decoder=4, frame_encoder=6, frame_inputs=6, frame_decoder=6,
    prior_components=3,
)  # fmt: skip
READ = as_read("audio")


def write(folder: Path) -> Path:
    """24 tones of 0.2 to 0.6 seconds that rise with their number, with a word; one has no sound, four validate."""
    random = np.random.default_rng(0)
    lines = ["id,audio,text,split"]
    for i in range(24):
        time = np.arange(int(random.integers(1600, 4800))) / 8000
        wave = 0.3 * np.sin(2 * np.pi * (400 + 50 * i) * time) + 0.003 * random.standard_normal(len(time))
        soundfile.write(folder / f"{i}.wav", wave, 8000)
        lines.append(
            f"{i},{'' if i == 5 else f'{i}.wav'},{'low' if i < 12 else 'high'},{'train' if i < 20 else 'valid'}"
        )
    (folder / "m.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return get(folder)


def get(folder: Path, **options: Any) -> Corpus:
    return prepare(folder / "m.csv", **{"audio": CONFIG, "cache_dir": folder / "cache", "workers": 0} | options)


def augmented(corpus: Corpus, config: AugmentConfig = ALL, seed: int = 0) -> Augmented:
    return Augmented(corpus.datasets["train"], corpus.front_ends, config, seed)


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted((folder / "cache").rglob("*")) if path.is_file()}


def drawn(loader: Any, corpus: Corpus) -> dict[str, torch.Tensor]:
    """{what was recorded: what was read} of an epoch, items being known by their frames."""
    found = {}
    for batch in loader:
        for clean, read in zip(batch["audio"].items(), batch[READ].items(), strict=True):
            found[clean.numpy().tobytes()] = read
    return found


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ------------------------------------------------------------------------------------------------- noise and masks


@pytest.mark.parametrize("snr", [-5.0, 0.0, 20.0])
def test_noise_has_the_ratio_that_is_asked_for(snr: float) -> None:
    random = np.random.default_rng(0)
    clean, noise = random.normal(-3, 2, (50, 8)).astype(np.float32), random.exponential(1, (50, 8)).astype(np.float32)
    power = np.exp(clean.astype(np.float64))
    added = np.exp(noisy(clean, noise, snr).astype(np.float64)) - power
    assert 10 * math.log10(power.sum() / added.sum()) == pytest.approx(snr, abs=0.01)
    np.testing.assert_allclose(added / noise, np.full_like(added, added.sum() / noise.sum()), rtol=0.02, atol=1e-4)


def test_noise_is_that_of_a_noisy_recording(corpus: Corpus) -> None:
    """Log-mels of tone and white noise added as waves, against noise added to the log-mels of the tone, on average."""
    end = LogMel(CONFIG)
    random, time = np.random.default_rng(0), np.arange(80_000) / 8000
    tone, noise = np.sin(2 * np.pi * 900 * time), random.standard_normal(len(time))
    mels = end.features(tone).numpy()
    gain = np.exp(mels.astype(np.float64)).sum() / np.exp(end.features(noise).double().numpy()).sum() * 0.1
    heard = end.features(tone + math.sqrt(gain) * noise).numpy()
    added = noisy(mels, np.exp(end.features(random.standard_normal(len(time))).numpy()), 10.0)
    np.testing.assert_allclose(added.mean(0), heard.mean(0), atol=0.15)
    np.testing.assert_allclose(added.std(0), heard.std(0), atol=0.15)


def test_noise_comes_in_its_share_within_its_ratios(corpus: Corpus) -> None:
    config = AugmentConfig(noise=0.5, snr_low=3.0, snr_high=6.0)
    data, standard = augmented(corpus, config), corpus.front_ends["audio"].fitted
    ratios, changed, count = [], 0, 0
    for epoch in range(20):
        batch = data.__getitems__([epoch * 20 + item for item in range(20)])
        for clean, read in zip(batch["audio"].items(), batch[READ].items(), strict=True):
            count += len(clean) > 0
            if not torch.equal(clean, read):
                changed += 1
                power, both = (standard.undo(x).double().exp() for x in (clean, read))
                ratios.append(10 * math.log10(power.sum() / (both - power).sum()))
    assert changed / count == pytest.approx(0.5, abs=0.1)
    assert 3 - 0.01 <= min(ratios) < 3.3
    assert 5.7 < max(ratios) <= 6.01


def test_masks_are_stretches_of_the_mean(corpus: Corpus) -> None:
    """At most so wide, over all channels or all frames, in no padding; other values are as they were."""
    config = AugmentConfig(frequency_masks=1, frequency_width=6, time_masks=1, time_width=9, time_share=0.25)
    data, widths, lengths = augmented(corpus, config), set(), set()
    for epoch in range(30):
        batch = data.__getitems__([epoch * 20 + item for item in range(20)])
        for clean, read in zip(batch["audio"].items(), batch[READ].items(), strict=True):
            if not len(clean):
                continue
            hidden = read == 0
            frames, channels = hidden.all(1), hidden.all(0)
            assert torch.equal(hidden, frames[:, None] | channels)
            torch.testing.assert_close(read[~hidden], clean[~hidden], rtol=0, atol=0)
            for mask, longest, seen in ((channels, 6, widths), (frames, min(9, len(clean) // 4), lengths)):
                places = mask.nonzero().flatten().tolist()
                assert len(places) <= longest
                assert places == list(range(places[0], places[0] + len(places))) if places else True
                seen.add(len(places))
        assert torch.equal(batch[READ].lengths, batch["audio"].lengths)
    assert widths == set(range(7))
    assert lengths == set(range(10))


def test_a_stretch_is_uniform_in_length_and_place() -> None:
    random = np.random.default_rng(0)
    found = [stretch(10, 3, *random.random(2)) for _ in range(8000)]
    lengths = np.bincount([s.stop - s.start for s in found]) / 8000
    np.testing.assert_allclose(lengths, 4 * [0.25], atol=0.02)
    places = np.bincount([s.start for s in found if s.stop - s.start == 3])
    np.testing.assert_allclose(places / places.sum(), 8 * [1 / 8], atol=0.03)


# ------------------------------------------------------------------------------------------------- who gets what


def model_of(corpus: Corpus) -> MultimodalVAE:
    torch.manual_seed(0)
    return build(corpus.front_ends, {"text": 9, "audio": 80}, SMALL).eval()


def test_encoders_read_it_and_decoders_are_scored_on_what_was_recorded(corpus: Corpus) -> None:
    model, items = model_of(corpus), range(12)
    batch, plain = augmented(corpus).__getitems__(items), corpus.datasets["train"].__getitems__(items)
    assert torch.equal(batch["audio"].values, plain["audio"].values)
    assert torch.equal(batch["text"].values, plain["text"].values)
    heard = model.encode({"text": plain["text"], "audio": batch[READ]})
    torch.testing.assert_close(model.encode(batch).experts.mean, heard.experts.mean)
    assert not torch.allclose(heard.experts.mean, model.encode(plain).experts.mean)
    z = torch.randn(12, 3)
    scores, expected = model.log_likelihood(z, batch), model.log_likelihood(z, plain)
    assert all(torch.equal(scores[name], expected[name]) for name in ("text", "audio"))
    with pytest.raises(ValueError, match=r"the batch holds \['video as read'\]"):
        model.encode({**batch, as_read("video"): batch[READ]})


def test_gaps_are_where_they_are_in_what_is_read(corpus: Corpus) -> None:
    batch = augmented(corpus).__getitems__(range(12))
    holed = mask_spans(batch, 1.0)
    assert holed["audio"].observed is not None
    assert torch.equal(holed[READ].mask, holed["audio"].mask)
    assert torch.equal(holed[READ].values, batch[READ].values)
    torch.manual_seed(1)
    without = mask_spans({view: x for view, x in batch.items() if view != READ}, 1.0)
    torch.manual_seed(1)
    assert torch.equal(mask_spans(batch, 1.0)["audio"].mask, without["audio"].mask)


def test_only_seed_epoch_and_item_count(corpus: Corpus) -> None:
    """Not the batch, its order, workers, or how many ranks there are."""
    data = augmented(corpus)
    one = data.__getitems__([20 + item for item in (3, 7, 11)])[READ].items()
    for place, item in enumerate((3, 7, 11)):
        assert torch.equal(data.__getitems__([20 + item])[READ].items()[0], one[place])
    assert len(data.__getitems__([])[READ]) == 0  # as a rank gets where the last items of an epoch do not suffice
    others = [data.__getitems__([3])[READ].items()[0], augmented(corpus, seed=1).__getitems__([23])[READ].items()[0]]
    assert not any(torch.equal(one[0], other) for other in others)
    epochs = []
    for how in ({"batch_size": 4}, {"batch_size": 7, "num_workers": 2}, {"batch_size": 1, "frames_per_batch": 300}):
        loader = make_loader(data, **how)  # type: ignore[arg-type]
        epochs.append([drawn(loader, corpus) for _ in range(2)])
    ranks = [make_loader(data, 3, rank=rank, ranks=2) for rank in range(2)]
    epochs.append([drawn(itertools.chain(*ranks), corpus) for _ in range(2)])
    assert not equal(epochs[0][0], epochs[0][1])
    for other in epochs[1:]:
        assert equal(epochs[0][0], other[0])
        assert equal(epochs[0][1], other[1])


def test_a_loader_goes_on_within_an_epoch(corpus: Corpus) -> None:
    def loader() -> Any:
        return make_loader(augmented(corpus), 4, seed=2)

    first = loader()
    whole = [batch[READ].values for _ in range(2) for batch in first]
    stopped = loader()
    for _ in stopped:
        pass
    seen = iter(stopped)
    before = [next(seen)[READ].values for _ in range(2)]
    again = loader()
    again.load_state_dict(stopped.state_dict())
    after = [batch[READ].values for batch in again]
    assert len(whole) == 10
    assert all(torch.equal(a, b) for a, b in zip(whole[5:], before + after, strict=True))


# ------------------------------------------------------------------------------------------------- training


def train(corpus: Corpus, out: Path, **options: Any) -> dict[str, torch.Tensor]:
    how = TrainingConfig(**{
        "epochs": 2, "batch_size": 4, "fitted_components": 1, "unimodal_posteriors": "none",
        "checkpoint_steps": 1, **options,
    })  # fmt: skip
    return dict(fit(corpus, out, model=SMALL, training=how, progress=False).model.state_dict())


def test_a_training_that_was_cut_within_an_epoch_goes_on_to_the_bit(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(corpus, tmp_path / "whole", augment=ALL, span_masking=0.3)
    step, taken = TrainingModule.training_step, itertools.count()

    def power_cut(self: TrainingModule, batch: Any, index: int) -> torch.Tensor:
        if next(taken) == 7:
            raise RuntimeError("power cut")
        return step(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", power_cut)
    with pytest.raises(RuntimeError, match="power cut"):
        train(corpus, tmp_path / "cut", augment=ALL, span_masking=0.3)
    monkeypatch.undo()
    assert torch.load(tmp_path / "cut" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 7
    after = train(corpus, tmp_path / "cut", augment=ALL, span_masking=0.3)
    assert all(torch.equal(whole[name], after[name]) for name in whole)
    other = train(corpus, tmp_path / "other", span_masking=0.3)
    assert not all(torch.equal(whole[name], other[name]) for name in whole)


def test_the_cache_knows_nothing_of_it_and_validation_is_clean(
    folder: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = files(folder), []
    validate = TrainingModule.validation_step
    monkeypatch.setattr(
        TrainingModule,
        "validation_step",
        lambda self, batch, index: seen.append(set(batch)) or validate(self, batch, index),
    )
    for number, config in enumerate((ALL, AugmentConfig(noise=1.0))):
        train(get(folder), tmp_path / str(number), augment=config, epochs=1)
    assert files(folder) == before
    assert seen == 2 * [{"text", "audio"}]


def test_by_default_nothing_is_changed(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader is that of the data set itself, and old runs are known by the settings that they had."""
    seen = []
    step = TrainingModule.training_step

    def watched(self: TrainingModule, batch: Any, index: int) -> torch.Tensor:
        seen.append((set(batch), self.trainer.train_dataloader))
        return step(self, batch, index)

    monkeypatch.setattr(TrainingModule, "training_step", watched)
    train(corpus, tmp_path, epochs=1)
    assert all(views == {"text", "audio"} for views, _ in seen)
    loader = seen[0][1]
    assert loader.dataset is corpus.datasets["train"]
    assert type(loader.batch_sampler) is BucketBatchSampler
    noted = [settings(SMALL, ObjectiveConfig(), TrainingConfig(augment=config)) for config in (AugmentConfig(), ALL)]
    assert ["augment" in told["training"] for told in noted] == [False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 1.5}, "augment.noise .1.5. is a share"),
        ({"time_share": -0.1}, "time_share .-0.1. one of frames"),
        ({"snr_low": 9.0, "snr_high": 3.0}, "augment.snr_low .9.0. must be at most snr_high .3.0."),
        ({"snr_high": math.inf}, "snr_high .inf., in dB"),
        ({"time_masks": -1}, "numbers of masks .0, -1. must be at least 0"),
        ({"frequency_width": 0}, "widths .0, 70. at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**options)


def test_what_does_not_fit_the_data_is_told(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"frequency_width is 30 channels, and there are \{'audio': 20\}"):
        train(corpus, tmp_path / "run", augment=AugmentConfig(frequency_masks=1, frequency_width=30))
    texts = prepare([{"text": "a", "split": "train"}] * 2, cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"for recordings, of which there are none among \['text'\]"):
        train(texts, tmp_path / "run", augment=ALL)
    assert not (tmp_path / "run" / "checkpoints").exists()


# ------------------------------------------------------------------------------------------------- speeds


def played(corpus: Corpus) -> dict[str, list[torch.Tensor]]:
    """{id: the training recording at every speed}."""
    dataset = corpus.datasets["train"]
    column, number = dataset.speeds["audio"], len(dataset)
    items = column.batch(np.arange(len(column.starts))).items()
    return {id: items[place::number] for place, id in enumerate(dataset.ids)}


def test_recordings_are_played_at_other_speeds(tmp_path: Path) -> None:
    """At speed s a tone of f Hz is one of s f Hz, and 1 / s as long. What was in the cache stays, and is used."""
    folder = write(tmp_path)
    plain = get(folder)
    before = files(folder)
    corpus = get(folder, speeds=[1.1, 0.9, 0.9])
    assert corpus.speeds == (0.9, 1.1)
    assert before.items() <= files(folder).items()
    for name, end in corpus.front_ends.items():
        assert end.to_dict() == plain.front_ends[name].to_dict()
    assert corpus.datasets["valid"].speeds == {}
    end = corpus.front_ends["audio"]
    for id, (same, slow, fast) in played(corpus).items():
        if id == "5":
            assert len(same) == len(slow) == len(fast) == 0
            continue
        wave, _ = soundfile.read(folder / f"{id}.wav", dtype="float32")
        assert torch.equal(same, end.encode(wave))
        for heard, speed in ((slow, 0.9), (fast, 1.1)):
            assert len(heard) == 1 + round(len(wave) / speed) // 100
            pitch = speed * (400 + 50 * int(id))
            expected = end.features(np.sin(2 * np.pi * pitch * np.arange(8000) / 8000)).mean(0).argmax()
            assert end.destandardise(heard).mean(0).argmax() == expected
    again = get(folder, speeds=[0.9, 1.1])
    for id, items in played(again).items():
        assert all(torch.equal(a, b) for a, b in zip(items, played(corpus)[id], strict=True))
    after = files(folder)
    get(folder)
    assert files(folder) == after
    assert get(folder).datasets["train"].speeds == {}


def test_every_speed_is_as_likely_for_reader_and_writer_alike(folder: Path, tmp_path: Path) -> None:
    corpus = get(folder, speeds=[0.8, 1.25], cache_dir=tmp_path)
    data, known = augmented(corpus, AugmentConfig()), played(corpus)
    counts = np.zeros(3)
    for epoch in range(60):
        batch = data.__getitems__([epoch * 20 + item for item in range(20)])
        assert set(batch) == {"text", "audio"}
        for id, heard in zip(data.ids, batch["audio"].items(), strict=True):
            if len(heard):
                counts[[torch.equal(heard, at) for at in known[id]].index(True)] += 1
    np.testing.assert_allclose(counts / counts.sum(), 3 * [1 / 3], atol=0.05)
    assert all(data.lengths("audio")[place] == max(map(len, known[id])) for place, id in enumerate(data.ids))
    both = augmented(corpus, AugmentConfig(time_masks=1)).__getitems__(range(20))
    assert torch.equal(both[READ].lengths, both["audio"].lengths)


def test_there_is_room_for_the_slowest(folder: Path, tmp_path: Path) -> None:
    corpus = get(folder, speeds=[0.5], cache_dir=tmp_path / "cache")
    train(corpus, tmp_path / "run", epochs=3, frames_per_batch=400)


def test_a_window_is_the_same_stretch_at_every_speed(folder: Path, tmp_path: Path) -> None:
    whole = get(folder, speeds=[0.8], cache_dir=tmp_path)
    cut = get(folder, speeds=[0.8], windows=WindowConfig(0.25, texts="keep"), cache_dir=tmp_path)
    parts = played(cut)
    for id, recordings in played(whole).items():
        windows = [found for part, found in parts.items() if part.partition("#")[0] == id]
        assert len(windows) == max(1, math.ceil(len(recordings[0]) / 20 - 0.05))
        for speed, recording in enumerate(recordings):
            found = cut.front_ends["audio"].destandardise(torch.cat([window[speed] for window in windows]))
            expected = whole.front_ends["audio"].destandardise(recording)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("speeds", [[0.0], [1.0], [3.0]])
def test_speeds_that_are_none_are_told(folder: Path, speeds: list[float]) -> None:
    with pytest.raises(ValueError, match=r"speeds must lie in 0\.5\.\.2 and not be 1"):
        get(folder, speeds=speeds)


def test_options_of_the_command_reach_the_training(folder: Path, tmp_path: Path) -> None:
    run, cache = tmp_path / "run", ["--cache-dir", str(tmp_path / "cache")]
    asked = ["--speeds", "0.9", "1.1", "--training.augment.noise=0.5", "--training.augment.time-masks", "1"]
    main(["train", str(folder / "m.csv"), "--out", str(run), *cache, *TINY, *asked])
    noted = json.loads((run / "training.json").read_text())
    assert noted["speeds"] == [0.9, 1.1]
    assert AugmentConfig(**noted["training"]["augment"]) == AugmentConfig(noise=0.5, time_masks=1)
    main(["evaluate", str(run), str(folder / "m.csv"), "--split=valid", "--draws=2", *cache])


def test_speeds_are_of_recordings(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="speeds are for recordings, and there are none"):
        prepare([{"text": "a", "split": "train"}], speeds=[0.9], cache_dir=tmp_path)
