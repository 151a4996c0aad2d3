"""Every public name of the release before is still found where it was, with a warning that tells where it is today."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest

import mmseqvae
from mmseqvae.config.renamed_modules import MODULES, NAMES, ROOT, moved

# Modules of the release before and their public names; loggers and type variables aside.
BEFORE = {
    "arguments": "ERRORS run Parser pairs refuse_file",
    "audio": "LEAST_STEP LARGEST_OGG_PAGE STREAMED AudioError read_audio resampled write_audio LogMel",
    "backtest": "LEVELS LINE scores pooled mean_squared_error crps last_value straight_line",
    "callbacks": "callbacks",
    "captured": "CHUNK KEPT Body Graph graph_of fits tokens frames",
    "cells": "Cell Tanh Gru",
    "classification": (
        "STRENGTHS HELD BINS VERSION Probe fit_probe report macro_f1 classify label_probabilities column_of "
        "write_confusion"
    ),
    "cli": "AUDIO TEXT WINDOWS MODEL OBJECTIVE TRAINING main train generate evaluate embed",
    "cli_tasks": "AT_ONCE forecast classify",
    "coherence": "Judge Points NOISES NOISE SMALL cross_generation matching_pairs",
    "completion": "BATCH DRAWS completed",
    "conditionals": "KINDS LEAST Conditional context_of fit_conditional Switched answer",
    "conditioned": "ConditionedRNN stack_draws check_lengths",
    "config": (
        "CACHE_DIR UNITS BPE_SIZE LogMelConfig TextConfig WindowConfig ModelConfig ObjectiveConfig AugmentConfig "
        "TrainingConfig"
    ),
    "data.augment": "NOISE_FRAMES Augmented Reading noisy stretch",
    "data.batches": "Batch Column SequenceDataset",
    "data.corpus": "VERSION prepare encode_items decode_items",
    "data.cuts": "CUTS SAID BYTES_A_SAMPLE read_cuts Stretch",
    "data.download": "BLOCK TIMEOUT download hold_to_first extract verify file_sha256 file_digest",
    "data.features": (
        "FrontEnd FileFrontEnd Clip VERSION FILES BYTES SHARDS HASHED DIGESTS WORTH_WORKERS front_end_from_dict "
        "digests compute own_cores"
    ),
    "data.gather": "Array compiled fill fill_standardised",
    "data.hub": "NAMES is_saved read_saved Stored",
    "data.making": "WORDS MANIFEST_KINDS Settings ReadIn files_of read_in corpus_of Clips no_steps",
    "data.manifest": (
        "SPLITS KNOWN PLAIN WEIGHT FILES CATEGORIES SHOWN ManifestError Problem Row LateRows Manifest read_manifest "
        "manifest_of hashed_split"
    ),
    "data.pieces": (
        "NUMBERS RATE MISSING Broken Piece at_rate Array Sound Entry Played open_archive read_entry piece_of "
        "file_trouble digest_of file_digest"
    ),
    "data.prepared": "TOLD CHECKED Stamps Corpus keep open_or_none",
    "data.sampler": "SORTED_TOGETHER PROBED CLASSES BucketBatchSampler NumberedDraws Plan numbers make_loader",
    "data.sealed": "SEAL UNFINISHED ABANDONED TRIES sealing is_whole remove",
    "data.shares": "Job PATIENCE POLL rank_of together",
    "data.sources": "Source IN_MEMORY read_source state_of read_items read_folder",
    "data.store": "VALUES INDEX TYPE PAGE write_shard Shards Store mapped key_of",
    "data.strings": "NOTHING Strings",
    "data.weights": "SAMPLING resampled highest_drawn checked_weights sampling_weights",
    "data.windows": "LITTLE Part Clock clocks windowed source_of",
    "decoders": "TokenDecoder FrameDecoder",
    "distributed": "FOREVER Processes processes joined cluster wait by_first total gathered",
    "encoders": "POOLINGS NormalisedMean TokenEncoder FrameEncoder",
    "estimates": "ROWS DENSITIES Scored log_mean_exp effective_draws mutual_information",
    "evaluation": (
        "BATCH CEPSTRA DRAWS MOST evaluate likelihood latent written distortion batches some_rows destandardised "
        "heard_again share_to_dict"
    ),
    "files": "SOUNDS replacing write_text write_csv write_json",
    "flows": "MOMENTS BATCH EPOCHS PATIENCE MixtureFlow Line FlowLaw Flow fit_flow fit_by_likelihood seeded",
    "forecast": "TOGETHER LAW Draws Forecasting",
    "frames": "CONSTANT FramesError Standard FrontEnd FrameArrays load_array channels_of",
    "free_running": (
        "ASK SLACK AHEAD NUMBERS FEW FEW_ROWS Fill affine Steps PreparedSteps steps Tokens drawn_from Blocks Ends "
        "fused end_law"
    ),
    "fused": (
        "Array COMPILED A1 A2 A3 B1 B2 B3 ZERO QUARTER HALF ONE TWO LAST compiled tanh sigmoid product BLOCK pick "
        "pick_of_logits note_ends end_blocks FusedTanh FusedGru FUSED"
    ),
    "fusion": (
        "Fusion poe poe_without_base moe mopoe mixture_of_products per_dimension SampledMoPoE GeneralisedPoE "
        "JointEncoder AttentionFusion FUSIONS Encoded"
    ),
    "gaps": "KINDS with_gaps hidden_part",
    "gaussian": "LOG_2PI Law Gaussian GaussianMixture Posterior parts draw invert",
    "griffin_lim": "TINY griffin_lim OverlapAdd",
    "labels": "Labels Category",
    "language_model": "LanguageModel build_language_model fit_language_model negative_log_likelihood",
    "likelihoods": (
        "SCALES LOGITS LOGITS_GPU Size FrameLikelihood Normal Laplace Bernoulli FRAME_LIKELIHOODS "
        "categorical_log_prob linear_categorical_log_prob categorical_sample categorical_law at_least"
    ),
    "measures": (
        "Share kept exact_match joint_coherence character_error_rate histogram effective_classes group diversity "
        "aligned_diversity fit_length Copying copying mel_cepstra mel_cepstral_distortion distinct copied ACTIVE "
        "active_units"
    ),
    "memory": "TRIM_THRESHOLD MMAP_MAX keep_freed_memory",
    "modalities": "Batch Encoder Decoder as_read Modality Modalities Covariate tokens frames",
    "model": "FITTED MultimodalVAE",
    "objectives": "COMMON chosen",
    "objectives.bounds": "elbo mvae telbo",
    "objectives.conditional": "cvae",
    "objectives.coordination": "coordinated jmvae mvtcae",
    "objectives.mixtures": "GRADIENTS mixture importance several_draws check_importance over_parts combine",
    "objectives.private": "dmvae mmvae_plus",
    "objectives.terms": (
        "Weights SPARE Terms Objective OBJECTIVES register Rate rate floored check_weights weighted counted "
        "weights_by_dimension diagnostics"
    ),
    "packed": "CELLS PIECE STAIR State Packing Padded alive run cell_of pieces",
    "pictures": "FIRST MORE save_png",
    "pretrained": (
        "COVARIATE_WIDTH SHOWN FORMAT_VERSION READABLE CONFIG WEIGHTS build check_names start_prior Trained load "
        "encoded posteriors to_device"
    ),
    "priors": (
        "IDLE Prior StandardNormal MixturePrior LearntMixture VampPrior Resampled WordThenPosterior Mixture "
        "divergence fit_mixture merged PRIORS"
    ),
    "recurrent": "CELLS Recurrent reverse",
    "report": "WORDS PAIRS SHOWN report",
    "runs": "write_items read_run load_run check_names command next_commands",
    "sampling": "TokenSampling FrameSampling check_max_steps Sampling",
    "schedules": "START warm_up sigmoid cyclical BETA_SCHEDULES beta_at TargetKL warm_up_then_cosine",
    "sequence": "constant step_mask Sequence full",
    "steps": "SPLIT_EVERY Training parameter_groups of_networks",
    "synth": (
        "FORMAT SHARD VOLUME PEAK FLOOR SILENCE MARGIN Utterance synthesise run_worker espeak_data check_voice finish "
        "trim work"
    ),
    "tables": "Backtest header lines",
    "text": "END UNKNOWN UNKNOWN_CHARACTER Tokenizer numbered checked",
    "text_figures": "text_figures beside_language_model sample_figures",
    "totals": "Totals",
    "training": (
        "PRECISIONS DRAWS fit repeatable check_settings check_first_step fit_prior fit_conditionals "
        "reconstruction_weights settings write_skipped"
    ),
    "units": "JOINERS WORD SYMBOL Words Spaces Bytes BytePairs TOKENIZERS train_tokenizer",
}
GONE = {  # which nothing took the place of
    "estimates": "Scored", "forecast": "LAW Forecasting", "modalities": "Encoder",
}  # fmt: skip
CASES = [(m, name) for m, names in BEFORE.items() for name in names.split() if name not in GONE.get(m, "").split()]


def imported(module: str, name: str) -> tuple[object, list[str]]:
    """What `from mmseqvae.MODULE import NAME` gives a user, and the warnings that show at that line."""
    if module in MODULES:  # so that it is asked for the first time
        sys.modules.pop(ROOT + module, None)
    elif name in moved(module):
        vars(import_module(ROOT + module)).pop(name, None)
    given: dict[str, object] = {"__name__": "of_a_user"}
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        exec(compile(f"from {ROOT}{module} import {name}", "user.py", "exec"), given)
    told = [warning for warning in found if issubclass(warning.category, FutureWarning)]
    assert {warning.filename for warning in told} <= {"user.py"}
    return given[name], [str(warning.message) for warning in told]


@pytest.mark.parametrize(("module", "name"), CASES)
def test_an_old_import_works_and_warns_once_with_the_new_name(module: str, name: str) -> None:
    found, told = imported(module, name)
    home, new = moved(module).get(name, (MODULES.get(module, ""), name))
    if not home:  # it is where it was
        assert told == []
        return
    assert found is getattr(import_module(ROOT + home), new)
    if module not in MODULES:
        assert told == [f"{ROOT}{module}.{name} is now {ROOT}{home}.{new}"]
        return
    (line,) = told
    assert line.partition(";")[0] == f"{ROOT}{module} is now {ROOT}{MODULES[module]}"
    if name in moved(module):
        shown = name if new == name else f"{name} as {new}"
        assert re.search(rf"; {re.escape(ROOT + home)} has ([^;]*, )?{shown}(,|;|$)", line)


def test_the_tables_name_no_module_but_those_of_before() -> None:
    assert {*MODULES, *NAMES} <= BEFORE.keys()
    root = Path(str(mmseqvae.__file__)).parent
    for module in BEFORE:
        there = (root / module.replace(".", "/")).with_suffix(".py").exists() or (
            root / module.replace(".", "/") / "__init__.py"
        ).exists()
        assert there != (module in MODULES), module


def test_the_changelog_has_the_table() -> None:
    page = (Path(__file__).parents[1] / "CHANGELOG.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `mmseqvae\.([\w.]+)` \| `mmseqvae\.([\w.]+)`", page, re.MULTILINE))
    assert rows == MODULES
    for renamed in re.findall(r"\w+=\w+", str(NAMES)):
        old, new = renamed.split("=")
        assert f"`{old}` is `{new}`" in page


def test_what_never_was_is_refused_as_ever() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'mmseqvae\.nothing'"):
        import_module("mmseqvae.nothing")
    with pytest.raises(AttributeError, match=r"module 'mmseqvae\.training' has no attribute 'nothing'"):
        _ = import_module("mmseqvae.training").nothing
    with pytest.warns(FutureWarning), pytest.raises(ImportError, match="cannot import name 'nothing'"):
        imported_nothing()


def imported_nothing() -> None:
    sys.modules.pop("mmseqvae.gaussian", None)
    from mmseqvae.gaussian import nothing  # noqa: F401


def test_the_library_alone_reads_no_table() -> None:
    code = "import sys, mmseqvae; print([name for name in sys.modules if name.startswith('mmseqvae.')])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
