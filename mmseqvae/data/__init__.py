"""Manifest -> features -> batches. Lazy, so that importing one file of this folder loads no other."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmseqvae.data.augment import Augmented
    from mmseqvae.data.batches import Batch, SequenceDataset
    from mmseqvae.data.corpus import decode_items, encode_items, prepare
    from mmseqvae.data.features import FrontEnd, front_end_from_dict
    from mmseqvae.data.manifest import ManifestError, read_manifest
    from mmseqvae.data.prepared import Corpus
    from mmseqvae.data.sampler import BucketBatchSampler, make_loader
    from mmseqvae.data.sources import read_source

__all__ = [
    "Augmented",
    "Batch",
    "BucketBatchSampler",
    "Corpus",
    "FrontEnd",
    "ManifestError",
    "SequenceDataset",
    "decode_items",
    "encode_items",
    "front_end_from_dict",
    "make_loader",
    "prepare",
    "read_manifest",
    "read_source",
]

_HOME = {
    "augment": ("Augmented",),
    "batches": ("Batch", "SequenceDataset"),
    "corpus": ("decode_items", "encode_items", "prepare"),
    "features": ("FrontEnd", "front_end_from_dict"),
    "prepared": ("Corpus",),
    "manifest": ("ManifestError", "read_manifest"),
    "sampler": ("BucketBatchSampler", "make_loader"),
    "sources": ("read_source",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"mmseqvae.data.{module}"), name)
    raise AttributeError(f"module 'mmseqvae.data' has no attribute {name!r}")
