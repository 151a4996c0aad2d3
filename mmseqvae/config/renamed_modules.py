"""Names of the release before, which work for one more release and warn with today's. No module below is imported here.

Modules moved into packages, and some names got those of the field; CHANGELOG.md has the table, too.
"""

from __future__ import annotations

import warnings
from functools import partial
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

ROOT = "mmseqvae."

# Modules that are gone, and where what they held is, but for NAMES.
MODULES = {
    "arguments": "cli.parser",
    "audio": "features.log_mel",
    "backtest": "evaluation.forecast_metrics",
    "callbacks": "training.callbacks",
    "captured": "rnn.kernels.cuda_graphs",
    "cells": "rnn.kernels.cell_equations",
    "classification": "evaluation.probe",
    "cli_tasks": "cli.forecast_and_classify",
    "coherence": "evaluation.cross_generation",
    "completion": "training.pseudo_labels",
    "conditionals": "inference.unimodal_posteriors",
    "conditioned": "rnn.conditioned_rnn",
    "data.batches": "data.dataset",
    "data.cuts": "data.lhotse_cuts",
    "data.features": "data.store.extraction",
    "data.gather": "data.collate",
    "data.hub": "data.huggingface",
    "data.making": "data.corpus_from_manifest",
    "data.pieces": "data.clips",
    "data.prepared": "data.corpus",
    "data.sealed": "data.store.atomic_folder",
    "data.shares": "data.store.work_sharing",
    "data.strings": "data.string_array",
    "data.weights": "data.sample_weights",
    "estimates": "inference.importance_sampling",
    "flows": "priors.flows",
    "forecast": "inference.forecasting",
    "frames": "features.arrays",
    "free_running": "rnn.autoregressive",
    "fused": "rnn.kernels.numba_cells",
    "gaps": "training.span_masking",
    "gaussian": "distributions.gaussian",
    "griffin_lim": "features.griffin_lim",
    "labels": "tokenizers.categories",
    "language_model": "evaluation.language_model_baseline",
    "likelihoods": "distributions.likelihoods",
    "measures": "metrics",
    "memory": "training.malloc",
    "modalities": "modality",
    "objectives.coordination": "objectives.coordinated_posteriors",
    "objectives.private": "objectives.private_latents",
    "objectives.terms": "objectives.base",
    "packed": "rnn.kernels.packed_rnn",
    "pictures": "reporting.figure_to_png",
    "pretrained": "pipeline.trained_model",
    "recurrent": "rnn.layer",
    "report": "reporting.run_report",
    "runs": "cli.common",
    "sampling": "decoding",
    "schedules": "training.schedules",
    "steps": "training.lightning_module",
    "synth": "features.espeak",
    "tables": "evaluation.backtest",
    "text": "tokenizers.characters",
    "text_figures": "evaluation.text_metrics",
    "totals": "training.metric_sums",
    "units": "tokenizers.words_bytes_bpe",
}

# Names that have another home than their module, which may still be there, or another name: {module: {home: names}}.
# "Law=Distribution" was Law.
NAMES = {
    "callbacks": {"training.callbacks": "callbacks=callbacks_of"},
    "classification": {"reporting.confusion_matrix": "write_confusion"},
    "cli": {"cli.commands": "AUDIO TEXT WINDOWS MODEL OBJECTIVE TRAINING"},
    "completion": {"training.pseudo_labels": "completed=with_pseudo_labels"},
    "conditionals": {"inference.unimodal_posteriors": "Switched=SelectedDistribution"},
    "data.corpus": {"data.preparation": "VERSION prepare encode_items decode_items"},
    "data.store": {"data.store.feature_store": "VALUES INDEX TYPE PAGE write_shard Shards Store mapped key_of"},
    "data.strings": {"data.string_array": "Strings=StringArray"},
    "evaluation": {
        "evaluation.summary": "BATCH CEPSTRA DRAWS MOST latent written distortion batches some_rows destandardised "
        "heard_again share_to_dict"
    },
    "flows": {"priors.flows": "Line=LinearMap FlowLaw=FlowDistribution"},
    "free_running": {"rnn.autoregressive": "end_law=end_log_probs"},
    "gaps": {"training.span_masking": "with_gaps=mask_spans hidden_part=random_spans"},
    "gaussian": {"distributions.gaussian": "Law=Distribution"},
    "likelihoods": {"distributions.likelihoods": "categorical_law=categorical_probabilities"},
    "modalities": {"pipeline.build": "tokens=token_modality frames=frame_modality"},
    "pretrained": {
        "pipeline.build": "COVARIATE_WIDTH build check_names start_prior",
        "pipeline.dataset_posteriors": "encoded posteriors",
        "pipeline.run_folder": "FORMAT_VERSION READABLE CONFIG WEIGHTS",
        "data.dataset": "to_device",
    },
    "priors": {"priors.mixtures": "IDLE"},
    "steps": {"training.lightning_module": "Training=TrainingModule SPLIT_EVERY=REFRESH_EVERY"},
    "text_figures": {"evaluation.text_metrics": "text_figures=text_metrics"},
    "totals": {"training.metric_sums": "Totals=MetricSums"},
    "training": {
        "training.trainer": "PRECISIONS repeatable check_settings check_first_step reconstruction_weights",
        "training.density_fitting": "DRAWS fit_prior fit_conditionals",
        "training.run_state": "settings write_skipped",
    },
}


def moved(module: str) -> dict[str, tuple[str, str]]:
    """{old name: (module, new name)} of `NAMES`, without "mmseqvae." before modules."""
    found = {}
    for home, names in NAMES.get(module, {}).items():
        for name in names.split():
            old, _, new = name.partition("=")
            found[old] = home, new or old
    return found


def by_old_name(package: str, name: str) -> Any:
    """What a module that is still there held under `name`, which it gets back; with a warning.

    Args:
        package: the full name of the module.
        name: that it has no more.

    Raises:
        AttributeError: it never had it.
    """
    if (found := moved(package.removeprefix(ROOT)).get(name)) is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    home, new = found
    warnings.warn(f"{package}.{name} is now {ROOT}{home}.{new}", FutureWarning, stacklevel=3)  # past `lazy`
    value = getattr(import_module(ROOT + home), new)
    setattr(import_module(package), name, value)  # an import asks more than once
    return value


class OldModule(Loader):
    """Makes a module that is gone: it gives what its new homes hold, and warns once where it is imported."""

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__.removeprefix(ROOT)
        told = [f"{module.__name__} is now {ROOT}{MODULES[old]}"]
        for home, names in NAMES.get(old, {}).items():
            told.append(f"{ROOT}{home} has {names.replace(' ', ', ').replace('=', ' as ')}")
        warnings.warn("; ".join(told), FutureWarning, stacklevel=2)
        vars(module)["__getattr__"] = partial(_of_old_module, old)


def _of_old_module(old: str, name: str) -> Any:
    home, new = moved(old).get(name, (MODULES[old], name))
    if not name.startswith("__") and hasattr(found := import_module(ROOT + home), new):
        return getattr(found, new)
    raise AttributeError(f"module {ROOT + old!r} has no attribute {name!r}")


def find_spec(name: str) -> ModuleSpec | None:
    """For `import` of a full name that no file has."""
    return ModuleSpec(name, OldModule()) if name.removeprefix(ROOT) in MODULES else None
