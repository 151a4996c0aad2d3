"""What watches a training: checkpoints, averaged weights, early stopping, a progress bar."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint, ProgressBar
from torch import Tensor
from tqdm.auto import tqdm

from mmseqvae.config import TrainingConfig


def callbacks_of(out: Path, training: TrainingConfig, steps: int, progress: bool) -> list[lightning.Callback]:
    """A checkpoint an epoch or more in `out`, averaged weights, early stopping and a progress bar, where asked for.

    steps: how many there are after pretraining.
    """
    chosen: list[lightning.Callback] = [
        ModelCheckpoint(out / "checkpoints", filename="last", save_top_k=1, enable_version_counter=False)
    ]
    if training.checkpoint_steps is not None:
        chosen.append(_Within(out / "checkpoints", training.checkpoint_steps))
    if training.ema_decay:
        # an average over more than a tenth of a short training would still hold its first weights
        chosen.append(EMAWeightAveraging(decay=min(training.ema_decay, max(0.0, 1 - 10 / steps))))
    if training.patience is not None:
        chosen.append(_Patience(training))
    if progress:
        chosen.append(_Progress())
    return chosen


class TrainingClock(lightning.Callback):
    """Seconds of a training, those of its parts before an interruption included."""

    def __init__(self) -> None:
        self.before, self.started = 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before = state_dict["seconds"]


class _Within(ModelCheckpoint):
    """The same file every so many steps; at the end of an epoch the other checkpoint is written."""

    def __init__(self, folder: Path, steps: int) -> None:
        super().__init__(folder, filename="last", save_top_k=1, enable_version_counter=False, every_n_train_steps=steps)

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any) -> None:
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, *args)


class _Patience(EarlyStopping):
    """Early stopping that keeps the weights of the best epoch, and does not count those of pretraining.

    In pretraining the bound need not rise. Kept are the averaged weights, where there are some: they were validated.
    """

    def __init__(self, training: TrainingConfig) -> None:
        super().__init__(training.monitor, mode="max", patience=training.patience or 0)
        self.pretraining = training.pretraining
        self.kept: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.current_epoch < self.pretraining:
            return
        before = self.best_score
        super().on_train_epoch_end(trainer, pl_module)
        if self.best_score is not before:
            averages = [c for c in trainer.callbacks if isinstance(c, EMAWeightAveraging)]  # type: ignore[attr-defined]
            judged = averages[0]._average_model.module if averages else pl_module  # type: ignore[union-attr]
            self.kept = {name: weight.detach().clone() for name, weight in judged.state_dict().items()}

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Behind the averaging in the list, so that the last average does not come back."""
        if self.kept:
            pl_module.load_state_dict(self.kept)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "kept": self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.kept = state_dict["kept"]


class _Progress(ProgressBar):
    """One bar over all steps of the training, with the bound and the KL of every posterior beside the ETA."""

    def __init__(self) -> None:
        super().__init__()
        self.bar: tqdm | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        total = int(trainer.num_training_batches) * (trainer.max_epochs or 0)
        self.bar = tqdm(total=total, initial=trainer.global_step, desc="training", unit="step", mininterval=0.5)

    def on_train_batch_end(self, *args: Any) -> None:
        if self.bar is not None:
            self.bar.update()

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """What the last epoch came to, which is known after its end."""
        now = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if self.bar is None or "train/elbo" not in now:
            return
        shown = {"elbo": f"{now.get('valid/elbo', now['train/elbo']):.1f}"}
        shown |= {name[6:]: f"{value:.1f}" for name, value in now.items() if name.startswith("train/kl/")}
        self.bar.set_postfix({"epoch": str(trainer.current_epoch), **shown}, refresh=False)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)
        if self.bar is not None:
            self.bar.close()
