"""How a modality is drawn from its decoder: plain settings, without torch, so that a command line can show them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenSampling:
    """How tokens are drawn from a decoder, such as `mmseqvae.decoders.TokenDecoder`.

    Raises:
        ValueError: for numbers out of their range.
    """

    temperature: float = 0.0
    """What logits are divided by: 0 takes the likeliest token, 1 draws from the model."""
    top_k: int | None = None
    """Draw from the k likeliest tokens; None for all."""
    top_p: float | None = None
    """Draw from the likeliest tokens that have this share of the probability together; None for all."""
    max_steps: int | None = None
    """Most tokens, the end token counted; None for the decoder's own limit."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        check_max_steps(self.max_steps)


@dataclass(frozen=True)
class FrameSampling:
    """How frames are drawn from a decoder; `FrameSampling(noise=1, end="draw")` is a draw from the model itself.

    Raises:
        ValueError: for numbers out of their range.
    """

    noise: float = 0.5
    """How far draws go: 1 draws from the likelihood, 0 takes its mode; between them the standard deviation is so much
    smaller, of frames of 0 and 1 the temperature."""
    end: str = "median"
    """Where a sequence ends: "median", where half of the distribution over lengths lies before, so that variety in
    length comes from the latent alone; or "draw" to draw the end."""
    max_steps: int | None = None
    """Most frames; None for the decoder's own limit."""

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= 1:
            raise ValueError(f"noise must lie in [0, 1], got {self.noise}")
        if self.end not in ("median", "draw"):
            raise ValueError(f"end must be 'median' or 'draw', got {self.end!r}")
        check_max_steps(self.max_steps)


def check_max_steps(max_steps: int | None) -> None:
    """Raise ValueError for a limit below one step."""
    if max_steps is not None and max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")


Sampling = TokenSampling | FrameSampling
