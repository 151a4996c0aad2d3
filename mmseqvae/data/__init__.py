"""From files to batches: manifests and other sources, corpora, samplers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmseqvae import lazy

if TYPE_CHECKING:
    from mmseqvae.data.augment import Augmented as Augmented
    from mmseqvae.data.corpus import Corpus as Corpus
    from mmseqvae.data.data_warning import DataWarning as DataWarning
    from mmseqvae.data.dataset import Batch as Batch
    from mmseqvae.data.dataset import SequenceDataset as SequenceDataset
    from mmseqvae.data.manifest import ManifestError as ManifestError
    from mmseqvae.data.manifest import read_manifest as read_manifest
    from mmseqvae.data.preparation import decode_items as decode_items
    from mmseqvae.data.preparation import encode_items as encode_items
    from mmseqvae.data.preparation import prepare as prepare
    from mmseqvae.data.sampler import BucketBatchSampler as BucketBatchSampler
    from mmseqvae.data.sampler import make_loader as make_loader
    from mmseqvae.data.sources import read_source as read_source
    from mmseqvae.data.store.extraction import FrontEnd as FrontEnd
    from mmseqvae.data.store.extraction import front_end_from_dict as front_end_from_dict

_HOME = {
    "Augmented": "augment",
    "Batch": "dataset",
    "BucketBatchSampler": "sampler",
    "Corpus": "corpus",
    "DataWarning": "data_warning",
    "FrontEnd": "store.extraction",
    "ManifestError": "manifest",
    "SequenceDataset": "dataset",
    "decode_items": "preparation",
    "encode_items": "preparation",
    "front_end_from_dict": "store.extraction",
    "make_loader": "sampler",
    "prepare": "preparation",
    "read_manifest": "manifest",
    "read_source": "sources",
}
__all__ = sorted(_HOME)
if not TYPE_CHECKING:
    __getattr__ = lazy(__name__, _HOME)
