"""Configuration as plain dataclasses. No torch in here, so that the command line can show its help at once."""

from mmseqvae.config.data import BPE_SIZE, CACHE_DIR, UNITS, AugmentConfig, LogMelConfig, TextConfig, WindowConfig
from mmseqvae.config.model import ModalityConfig, ModelConfig
from mmseqvae.config.ready_configs import READY, Settings, load_config
from mmseqvae.config.training import ObjectiveConfig, TrainingConfig

__all__ = [
    "BPE_SIZE", "CACHE_DIR", "READY", "UNITS", "AugmentConfig", "LogMelConfig", "ModalityConfig", "ModelConfig",
    "ObjectiveConfig", "Settings", "TextConfig", "TrainingConfig", "WindowConfig", "load_config",
]  # fmt: skip
