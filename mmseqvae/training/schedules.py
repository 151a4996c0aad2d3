"""What changes while a model trains: step -> number."""

from __future__ import annotations

import math

START = 0.1  # share of the weight at which a linear warm-up begins


def warm_up(step: int, steps: int, start: float = 0.0, end: float = 1.0) -> float:
    """Linear from `start` at step 0 to `end` at `steps`, then constant (Bowman et al. 2016, section 3.1, for beta)."""
    if steps <= 0:
        return end
    return start + (end - start) * min(1.0, step / steps)


def sigmoid(step: int, steps: int) -> float:
    """Logistic: 0.0067 at step 0, 1/2 at half of `steps`, 0.9933 at `steps`, then to 1 (Bowman et al. 2016, fig. 2)."""
    return 1.0 if steps <= 0 else 1 / (1 + math.exp(min(700.0, 10 * (0.5 - step / steps))))


def cyclical(step: int, total: int, cycles: int, rise: float = 0.5) -> float:
    """Linear from 0 to 1 over the first `rise` of every cycle, then 1 until its end (Fu et al. 2019, eq. 6 and 7).

    `cycles` equally long ones in `total` steps; 1 from `total` on.
    """
    length = math.ceil(total / cycles)
    if step >= total:
        return 1.0
    return min(1.0, step % length / length / rise)


BETA_SCHEDULES = ("linear", "sigmoid", "cyclical")


def beta_at(step: int, schedule: str, steps: int, total: int, cycles: int) -> float:
    """Factor on beta at a step: "linear" (from `START`) or "sigmoid" over `steps`, "cyclical" over `total` steps."""
    if schedule == "sigmoid":
        return sigmoid(step, steps)
    if schedule == "cyclical":
        return cyclical(step, total, cycles)
    return warm_up(step, steps, START)


class TargetKL:
    """beta adapted so that the KL approaches `target` nats: the controller of ControlVAE (Shao et al. 2020, alg. 1).

        e = target - KL,   beta = proportional / (1 + exp(e)) + I,   I = I - integral * e

    kept in 0..most. I stands still while beta is at one of its ends and would go beyond it, which the published
    condition means to say but cannot, since beta is never beyond them. `state` is all that a training needs to go on.
    """

    def __init__(self, target: float, most: float, proportional: float = 0.01, integral: float = 0.0001) -> None:
        if target <= 0 or most <= 0:
            raise ValueError(f"target_kl ({target}) and beta ({most}) must be above 0")
        self.target, self.most = target, most
        self.proportional, self.integral = proportional, integral
        self.beta, self.accumulated = 0.0, 0.0

    def update(self, kl: float) -> float:
        """beta after a step at which the KL was `kl` nats."""
        error = self.target - kl
        step = -self.integral * error
        if not ((self.beta >= self.most and step > 0) or (self.beta <= 0 and step < 0)):
            self.accumulated += step
        pull = self.proportional / (1 + math.exp(min(error, 700.0)))
        self.beta = min(max(pull + self.accumulated, 0.0), self.most)
        return self.beta

    @property
    def state(self) -> dict[str, float]:
        return {"beta": self.beta, "accumulated": self.accumulated}

    @state.setter
    def state(self, state: dict[str, float]) -> None:
        self.beta, self.accumulated = state["beta"], state["accumulated"]


def warm_up_then_cosine(step: int, warm: int, total: int, last: float = 0.02) -> float:
    """Factor on the learning rate: linear to 1 over `warm` steps, then half a cosine down to `last` at `total`.

    Loshchilov & Hutter 2017, eq. 5, without restarts.
    """
    if step < warm:
        return (step + 1) / warm
    share = min(1.0, (step - warm) / max(1, total - warm))
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * share))
