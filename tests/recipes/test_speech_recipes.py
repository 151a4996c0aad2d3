"""The recipes of speech and sound: each runs on made data of its layout, and says early what is wrong with others."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmseqvae.config import TrainingConfig
from recipes import clotho, ljspeech, speech_commands, spoken_numbers
from tests.speech import SPEECH, captioned, commands, few_numbers, labelled, recipes, sentences, tone
from tests.two_steps import TINY, runs_and_runs_again


def rows(manifest: Path) -> list[dict[str, str]]:
    with open(manifest, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", SPEECH)
def test_two_steps(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "recipes.spoken_numbers":
        pytest.importorskip("espeakng_loader")
        pytest.importorskip("pocketsphinx")
    runs_and_runs_again(name, recipes(tmp_path, monkeypatch)[name](), tmp_path, capsys)


# --- spoken numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spell", "spelt"),
    [
        (spoken_numbers.english, {0: "zero", 13: "thirteen", 40: "forty", 77: "seventy-seven", 100: "one hundred",
                                  101: "one hundred and one", 342: "three hundred and forty-two"}),
        (spoken_numbers.german, {0: "null", 1: "eins", 16: "sechzehn", 21: "einundzwanzig", 30: "dreißig",
                                 101: "einhunderteins", 342: "dreihundertzweiundvierzig",
                                 777: "siebenhundertsiebenundsiebzig"}),
        (spoken_numbers.mandarin, {0: "零", 10: "十", 11: "十一", 20: "二十", 100: "一百", 105: "一百零五",
                                   110: "一百一十", 342: "三百四十二", 900: "九百"}),
    ],
)  # fmt: skip
def test_numbers_are_spelt(spell, spelt: dict[int, str]) -> None:
    assert {n: spell(n) for n in spelt} == spelt
    assert len({spell(n) for n in range(1000)}) == 1000


@pytest.mark.parametrize("language", spoken_numbers.LANGUAGES)
def test_what_is_tested_on_is_never_heard_in_training_but_all_its_parts_are(language: str) -> None:
    spell = spoken_numbers.LANGUAGES[language].spell
    whole, some = spoken_numbers.splits(0, False), spoken_numbers.splits(0, True)
    assert Counter(whole.values()) == {"train": 900, "test": 100}
    assert Counter(some.values()) == {"train": 850, "test": 100, "valid": 50}
    assert {n for n in whole if whole[n] == "test"} == {n for n in some if some[n] == "test"}
    assert spoken_numbers.splits(1, False) != whole
    trained = {n for n in some if some[n] == "train"}
    for n in set(some) - trained:
        assert n > 99
        assert spell(n) not in {spell(m) for m in trained}
        assert any(m // 100 == n // 100 for m in trained), "its hundreds are heard"
        assert any(m % 100 == n % 100 for m in trained), "what follows them is heard"


def test_numbers_are_spoken_once_and_held_out_in_every_voice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("espeakng_loader")
    few_numbers(monkeypatch)
    manifest = spoken_numbers.prepare_numbers(tmp_path, "cmn", holdout=True)
    items = rows(manifest)
    assert Counter(item["split"] for item in items) == {"train": 103, "test": 2, "valid": 1}
    assert not {i["text"] for i in items if i["split"] == "train"} & {i["text"] for i in items if i["split"] != "train"}
    made = {path: path.stat().st_mtime_ns for path in manifest.parent.rglob("*.wav")}
    whole = spoken_numbers.prepare_numbers(tmp_path, "cmn")
    assert Counter(item["split"] for item in rows(whole)) == {"train": 104, "test": 2}
    assert {path: path.stat().st_mtime_ns for path in manifest.parent.rglob("*.wav")} == made


def test_the_recogniser_of_numbers_hears_whole_phrases(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    pytest.importorskip("pocketsphinx")
    from mmseqvae.features.espeak import Utterance, synthesise
    from mmseqvae.features.log_mel import read_audio

    phrases = {str(n): spoken_numbers.english(n) for n in (342, 615, 700, 118, 55, 9)}
    jobs = {name: Utterance(text, "en-us", speed=150) for name, text in phrases.items()}
    waves = [read_audio(path, 16000) for path in synthesise(jobs, tmp_path, 16000, processes=1)]
    wanted = [text.replace("-", " ") for text in phrases.values()]
    for name, recogniser in spoken_numbers.number_recognisers().items():
        heard = recogniser.recognise(waves, 16000)
        assert sum(a == b for a, b in zip(wanted, heard, strict=True)) >= 4, (name, heard)


def test_the_ratio_is_of_generated_over_reference_speech() -> None:
    metrics = {"reference": {"ear": {"value": 0.8}}, "text_to_audio": {"ear": {"value": 0.6}}}
    assert spoken_numbers.over_reference(metrics, "ear") == pytest.approx(0.75)
    metrics["reference"]["ear"]["value"] = 0.0
    assert spoken_numbers.over_reference(metrics, "ear") is None


# --- speech commands ---------------------------------------------------------------------------------------------


def test_commands_are_split_by_the_published_lists(tmp_path: Path) -> None:
    folder = commands(tmp_path / "commands")
    items = rows(speech_commands.prepare_commands(tmp_path / "cache", folder))
    assert Counter(item["split"] for item in items) == {"train": 24, "valid": 4, "test": 4}
    assert {item["text"] for item in items} == {"yes", "no"}  # and no background noise
    assert {item["speaker"] for item in items if item["split"] == "test"} == {"00000002"}

    (folder / "testing_list.txt").write_text("yes/nobody_nohash_0.wav\n")
    with pytest.raises(ValueError, match=r"testing_list.txt lists 1 files that are not there: \['yes/nobody"):
        speech_commands.prepare_commands(tmp_path / "cache", folder)
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such folder"):
        speech_commands.prepare_commands(tmp_path / "cache", tmp_path / "nowhere")
    (folder / "testing_list.txt").write_text("")
    for word in ("yes", "no"):
        for path in (folder / word).iterdir():
            if not path.name.startswith("00000001_"):
                path.unlink()
    with pytest.raises(ValueError, match="no recordings"):
        speech_commands.prepare_commands(tmp_path / "cache", folder)


# --- sentences ---------------------------------------------------------------------------------------------------


def test_sentences_are_normalised_short_and_split(tmp_path: Path) -> None:
    folder = sentences(tmp_path / "sentences")
    items = rows(ljspeech.prepare_sentences(tmp_path / "cache", folder, 2.0))
    assert Counter(item["split"] for item in items) == {"train": 46, "test": 3, "valid": 3}
    assert "too long" not in {item["text"] for item in items}
    assert all(item["text"].startswith('"') and item["text"].endswith("number") for item in items)  # quotes are text
    assert len(rows(ljspeech.prepare_sentences(tmp_path / "cache", folder, 3.0))) == 53

    with pytest.raises(ValueError, match=r"only 0 sentences of at most 0\.01 s"):
        ljspeech.prepare_sentences(tmp_path / "cache", folder, 0.01)
    (folder / "wavs" / "LJ001-0003.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"line 4: .*LJ001-0003\.wav is missing"):
        ljspeech.prepare_sentences(tmp_path / "cache", folder, 2.0)
    (folder / "metadata.csv").write_text("LJ001-0000|only two\n")
    with pytest.raises(ValueError, match=r"line 1: id\|transcript"):
        ljspeech.prepare_sentences(tmp_path / "cache", folder, 2.0)
    with pytest.raises(FileNotFoundError, match=r"holds no metadata\.csv"):
        ljspeech.prepare_sentences(tmp_path / "cache", tmp_path, 2.0)


def test_a_part_of_a_data_set_holds_those_items(tmp_path: Path) -> None:
    from mmseqvae.data import prepare

    manifest = ljspeech.prepare_sentences(tmp_path / "cache", sentences(tmp_path / "sentences"), 2.0)
    whole = prepare(manifest, audio=ljspeech.AUDIO, cache_dir=tmp_path / "cache").datasets["train"]
    part = ljspeech.chosen(whole, np.array([5, 2]))
    assert part.ids == [whole.ids[5], whole.ids[2]]
    for name, sequence in part.__getitems__([1]).items():
        assert (sequence.values == whole.__getitems__([2])[name].values).all()


# --- sounds ------------------------------------------------------------------------------------------------------


def test_every_caption_is_an_item_and_parts_are_splits(tmp_path: Path) -> None:
    folder = captioned(tmp_path / "clotho")
    items = rows(clotho.prepare_sounds(tmp_path / "cache", folder))
    assert Counter(item["split"] for item in items) == {"train": 30, "valid": 10, "test": 15}
    assert {item["text"] for item in items} == {"a dog is heard loudly", "a bell is heard loudly"}
    assert len({item["audio"] for item in items}) == 11

    (folder / "development" / "a bell, 0.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"development\.csv, line 2: .*a bell, 0\.wav is missing"):
        clotho.prepare_sounds(tmp_path / "cache", folder)
    (folder / "clotho_captions_development.csv").write_text("file_name,caption_1\n")
    with pytest.raises(ValueError, match=r"lacks the columns \['caption_2'"):
        clotho.prepare_sounds(tmp_path / "cache", folder)


def test_labelled_sounds_run_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = labelled(tmp_path / "sounds")
    items = rows(clotho.prepare_sounds(tmp_path / "cache", folder))
    assert Counter((item["text"], item["split"]) for item in items) == {
        (label, split): number
        for label in ("dog", "rain")
        for split, number in {"train": 10, "valid": 1, "test": 1}.items()
    }
    training = TrainingConfig(epochs=1, batch_size=16, fitted_components=1, unimodal_posteriors="none", threads=1)
    clotho.main(data_dir=folder, out=tmp_path / "run", cache_dir=tmp_path / "cache", model=TINY, training=training)
    assert "measured on 2 sounds of test" in capsys.readouterr().out

    with pytest.raises(FileNotFoundError, match="nor folders of labelled sounds"):
        clotho.prepare_sounds(tmp_path / "cache", tmp_path / "sounds" / "dog")
    tone(tmp_path / "one" / "dog" / "1.wav", 500, 0.2, np.random.default_rng(0))
    with pytest.raises(ValueError, match="at most 1 sounds of a label; 10 are needed"):
        clotho.prepare_sounds(tmp_path / "cache", tmp_path / "one")
