"""Recordings and words as tensors of one length, for toolkits without lengths, and what such toolkits write, back.

Frames are standardised log-mels, padded with digital silence or cropped; words are one-hot, padded with `</s>`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmseqvae.features.log_mel import LogMel
from mmseqvae.metrics import fit_length
from mmseqvae.sequence import Sequence
from mmseqvae.tokenizers.characters import Tokenizer

QUIET = 0.5  # mean distance from silence, in standard deviations, up to which a frame at the end is padding


@dataclass(frozen=True)
class FixedLength:
    """frames, characters: the one length of either modality. silence [C]: the standardised frame of digital silence."""

    tokenizer: Tokenizer
    silence: Tensor
    frames: int = 64
    characters: int = 6

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Of one item: {modality: (steps, channels)}."""
        return {
            "audio": (self.frames, len(self.silence)),
            "text": (self.characters, self.tokenizer.vocabulary_size),
        }

    def audio(self, recordings: Sequence) -> Tensor:
        """[B, T, C] standardised frames -> [B, frames, C]."""
        return fit_length(recordings, self.silence, self.frames)

    def text(self, words: list[str]) -> Tensor:
        """-> [B, characters, V], one-hot. Raises ValueError for a word that does not fit with its end."""
        rows = []
        for word in words:
            tokens = self.tokenizer.encode(word)
            if len(tokens) > self.characters:
                raise ValueError(f"{word!r} and its end take {len(tokens)} tokens, there is room for {self.characters}")
            rows.append(F.pad(tokens, (0, self.characters - len(tokens)), value=self.tokenizer.end_id))
        return F.one_hot(torch.stack(rows), self.tokenizer.vocabulary_size).float()

    def recordings(self, audio: Tensor) -> Sequence:
        """[B, frames, C] -> a Sequence without the silence at the end; at least one frame is kept."""
        loud = (audio - self.silence).abs().mean(-1) > QUIET
        steps = torch.arange(1, audio.shape[1] + 1)
        return Sequence(audio, (loud * steps).amax(1).clamp_min(1))

    def words(self, logits: Tensor) -> list[str]:
        """[B, characters, V] -> the most probable character at every place, up to the first end."""
        return [self.tokenizer.decode(row) for row in logits.argmax(-1)]


def silence(front_end: LogMel) -> Tensor:
    """The standardised frame of digital silence, mean over a second of it: [C]."""
    second = np.zeros(front_end.config.sample_rate, np.float32)
    return front_end.standardise(front_end.features(second)).mean(0)
