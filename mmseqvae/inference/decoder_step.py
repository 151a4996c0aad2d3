"""One free-running step of a decoder as a module, so that a program without Python can draw."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.rnn.kernels.packed_rnn import State


class DecoderStep(nn.Module):
    """A decoder's first step, and every later one, of tensors alone: what torch.export and torch.compile take.

    The end is left to the caller: at the token `end`, or where the end outcomes of a block say so, and at `max_steps`
    at the latest.

    Args:
        decoder: whose weights are shared.
    """

    def __init__(self, decoder: TokenDecoder | FrameDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, z: Tensor, previous: Tensor | None = None, state: list[State] | None = None
    ) -> tuple[dict[str, Tensor], list[State]]:
        """What the next step is drawn from.

        Args:
            z: latents [N, D].
            previous: what the last step drew, tokens [N] or a block of frames [N, r C]; None for the first step.
            state: what the last step returned; None for the first step.

        Returns:
            {"logits": [N, V]}, or {"parameters": [N, r size] of the frame likelihood, "ends": [N, r + 1] logits of the
            outcomes that `FrameDecoder.end_log_prob` describes}; and the next state, each tensor [N, H].
        """
        decoder, first = self.decoder, state is None
        if state is None:
            state = decoder.net.begin(z)
        if isinstance(decoder, FrameDecoder):
            block = decoder.start.expand(z.shape[0], -1) if previous is None else previous
            hidden, state = decoder.step(z, block, state)
            return {"parameters": decoder.to_frames(hidden), "ends": decoder.to_end(hidden)}, state
        if previous is None:
            previous = torch.full_like(z[:, 0], decoder.start_token, dtype=torch.long)
        logits, state = decoder.step(z, previous, state)
        if first and decoder.never_first:
            logits = logits.index_fill(1, torch.tensor(decoder.never_first, device=z.device), -torch.inf)
        return {"logits": logits}, state
