"""How a modality is drawn from its decoder: plain settings, without torch, so that a command line can show them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenSampling:
    """How tokens are drawn. temperature 0 is greedy; top_k and top_p cut the tail; max_steps counts the end token."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    max_steps: int | None = None

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
    """How frames are drawn. noise 1 draws from the likelihood, 0 takes its mode (0 to 1).

    end: "median" ends where half of the distribution over lengths lies before, so that variety in length comes from the
    latent alone; "draw" draws the end. `FrameSampling(noise=1, end="draw")` is a draw from the model itself.
    """

    noise: float = 0.5
    end: str = "median"
    max_steps: int | None = None

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
