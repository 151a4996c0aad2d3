"""What a training does in a step and in an epoch: the Lightning module, its optimiser, what it logs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from mmseqvae.config import ObjectiveConfig, TrainingConfig
from mmseqvae.data.dataset import to_device
from mmseqvae.distributed import gathered, processes, total
from mmseqvae.metrics import ACTIVE
from mmseqvae.model import Batch, MultimodalVAE
from mmseqvae.objectives import Objective, Terms, chosen
from mmseqvae.training.metric_sums import MetricSums
from mmseqvae.training.schedules import TargetKL, beta_at, warm_up, warm_up_then_cosine
from mmseqvae.training.span_masking import mask_spans

REFRESH_EVERY = 100  # steps, after which idle parts of a learnt mixture are put to use again


class TrainingModule(lightning.LightningModule):
    """One model, one objective, one optimiser. Loss: minus the mean over the batch of the objective, plus penalties.

    On several processes the mean is over the items of all of their batches, and every process draws noise of its own.
    """

    def __init__(
        self, model: MultimodalVAE, objective: ObjectiveConfig, training: TrainingConfig, weights: dict[str, float],
        total_steps: int, maximised: Objective | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.maximised = maximised or chosen(objective.name, objective.options)
        self.model, self.objective, self.training_config, self.weights = model, objective, training, weights
        self.total_steps = total_steps
        self.target = None if objective.target_kl is None else TargetKL(objective.target_kl, objective.beta)
        self.trained_on, self.seen, self.means_seen = MetricSums(), MetricSums(), MetricSums()
        self.noise: Tensor | None = None  # state of the generators at a checkpoint within an epoch
        self.pretraining_steps = total_steps // max(1, training.epochs) * training.pretraining
        self.untrained = {name: weight.clone() for name, weight in self.decoders()} if training.pretraining else {}

    def decoders(self) -> Iterator[tuple[str, Tensor]]:
        """The weights that `start_decoders_anew` resets, by name."""
        for name in self.model.writable:
            decoder = self.model.modality(name).decoder
            assert decoder is not None
            yield from ((f"{name}.{key}", weight) for key, weight in decoder.state_dict().items())

    @property
    def pretraining(self) -> bool:
        return self.global_step < self.pretraining_steps

    def on_train_epoch_start(self) -> None:
        """Noise depends on the seed, the epoch and the rank alone, so that a training that is resumed is the same."""
        self.noise, self.trained_on = None, MetricSums()
        seed = self.training_config.seed * 1_000_003 + self.current_epoch
        torch.manual_seed(seed + self.global_rank * 15_485_863)
        if self.training_config.pretraining and self.current_epoch == self.training_config.pretraining:
            self.start_decoders_anew()

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        if self.noise is not None:  # going on within an epoch
            self._set_noise(self.noise)
            self.noise = None
        if self.model.learnt is not None and self.global_step % REFRESH_EVERY == 0:
            self.model.learnt.refresh()

    @torch.no_grad()
    def start_decoders_anew(self) -> None:
        """Decoders as before training, and an optimiser that knows nothing (Li et al. 2019, section 3).

        "A surprisingly effective fix for deep latent variable modeling of text": encoders that an autoencoder has
        trained say much from the first step, and a decoder that starts anew has not yet learnt to do without them.
        """
        for name, weight in self.decoders():
            weight.copy_(self.untrained[name])
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        optimizer.optimizer.state.clear()

    def training_step(self, batch: Batch, index: int) -> Tensor:
        rows = _rows(batch)
        batch = batch if rows else self.stand_in(self.trainer.train_dataloader)
        terms = self.terms(mask_spans(batch, self.training_config.span_masking))
        numbers = self.numbers(terms)
        if self.target is not None and not self.pretraining:
            sums = torch.stack([terms.kl.detach().sum() * bool(rows), terms.kl.new_full((), rows)])
            kl, items = total(sums).tolist()  # every process follows the same beta
            numbers["beta"] = torch.full_like(terms.elbo, self.target.update(kl / items))
        self.trained_on.add(_counted(numbers, rows))
        return self.penalty() - self.mean(terms.objective, rows)

    def stand_in(self, loader: Any) -> Batch:
        """Where others have the last items of an epoch: something to take part with, which counts nothing."""
        return to_device(loader.dataset[0], self.device)

    def mean(self, values: Tensor, rows: int) -> Tensor:
        """Of [B] over the batches of all processes, of which `rows` here, times what their gradients are divided by."""
        ranks = processes().ranks
        if ranks == 1:
            return values.mean()
        items = total(torch.full((), float(rows), device=values.device))
        return values.sum() * (ranks * bool(rows)) / items  # DDP takes the mean of the gradients over the processes

    @property
    def beta(self) -> float:
        """Weight of the KL to the prior at this step."""
        config = self.objective
        if self.pretraining:
            return 0.0
        if self.target is not None:
            return self.target.beta
        step = self.global_step - self.pretraining_steps
        share = beta_at(step, config.beta_schedule, config.beta_warm_up, self.total_steps, config.beta_cycles)
        return config.beta * share

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Runs on every process, although the first alone writes."""
        checkpoint["target_kl"] = None if self.target is None else self.target.state
        checkpoint["noise"] = gathered(self._noise())
        checkpoint["trained_on"] = {name: total(sums) for name, sums in self.trained_on.sums.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.target is not None:
            self.target.state = checkpoint["target_kl"]
        if "noise" in checkpoint:
            self.noise = checkpoint["noise"][self.global_rank].cpu()
            first = self.global_rank == 0  # whose sums were those of all
            self.trained_on.sums = {n: first * sums.to(self.device) for n, sums in checkpoint["trained_on"].items()}

    def _noise(self) -> Tensor:
        """State of the generators that draws come from, in memory."""
        here = torch.get_rng_state()
        return torch.cat([here, torch.cuda.get_rng_state(self.device)]) if self.device.type == "cuda" else here

    def _set_noise(self, state: Tensor) -> None:
        size = len(torch.get_rng_state())
        torch.set_rng_state(state[:size])
        if len(state) > size:
            torch.cuda.set_rng_state(state[size:], self.device)

    def validation_step(self, batch: Batch, index: int) -> None:
        rows = _rows(batch)
        terms = self.terms(batch if rows else self.stand_in(self.trainer.val_dataloaders))
        self.seen.add(_counted(self.numbers(terms), rows))
        self.means_seen.add_rows(_counted(terms.means, rows))

    def terms(self, batch: Batch) -> Terms:
        config = self.objective
        common = {"beta": self.beta, "free_bits": config.free_bits, "free_bits_item": config.free_bits_item}
        return self.maximised(self.model, batch, **common, weights=self.weights, **config.options)

    def penalty(self) -> Tensor:
        """l1 sum |w| + l2 / 2 sum w^2 over the weight matrices of the networks, in nats."""
        l1, l2 = self.training_config.l1, self.training_config.l2
        total = torch.zeros((), device=self.device)
        for weight in of_networks(self.model) if l1 or l2 else ():
            if weight.ndim > 1:
                total = total + l1 * weight.abs().sum() + l2 / 2 * weight.square().sum()
        return total

    def numbers(self, terms: Terms) -> dict[str, Tensor]:
        """What is logged of every item, [B]: the bound, KL and reconstruction per modality; they show a collapse."""
        numbers = {"objective": terms.objective, "elbo": terms.elbo, "kl/joint": terms.kl}
        numbers |= {f"reconstruction/{name}": value for name, value in terms.reconstruction.items()}
        numbers |= {f"coordination/{name}": value for name, value in terms.coordination.items()}
        return numbers | {f"kl/{name}": value for name, value in terms.expert_kl.items()} | terms.others

    def on_train_epoch_end(self) -> None:
        self.report("train", self.trained_on)

    def on_validation_epoch_end(self) -> None:
        self.report("valid", self.seen)
        for name, variance in self.means_seen.variances().items():
            if not variance.isnan().any():
                self.log(f"valid/active_units/{name}", float((variance > ACTIVE).sum()))
        self.seen, self.means_seen = MetricSums(), MetricSums()

    def report(self, stage: str, totals: MetricSums) -> None:
        """Log the means over all items of the epoch that are there."""
        for name, value in totals.means().items():
            if value == value:
                self.log(f"{stage}/{name}", value)

    def configure_optimizers(self) -> Any:
        config = self.training_config
        groups = parameter_groups(self.model, config.learning_rate, config.prior_rate)
        whole = config.precision == "32-true"  # Lightning cannot clip gradients beside a fused Adam in mixed precision
        optimizer = torch.optim.Adam(groups, lr=config.learning_rate, fused=whole)

        def factor(step: int) -> float:
            if step < self.pretraining_steps:
                return warm_up(step + 1, config.warm_up)
            return warm_up_then_cosine(step - self.pretraining_steps, config.warm_up, self.total_steps)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return to_device(batch, device)


def parameter_groups(model: MultimodalVAE, rate: float, prior_rate: float) -> list[dict[str, Any]]:
    """Parameters for an optimiser: those of a prior learnt with the model go `prior_rate` times as fast."""
    learnt = [] if model.learnt is None else list(model.learnt.parameters())
    groups: list[dict[str, Any]] = [{"params": of_networks(model), "lr": rate}]
    return [*groups, {"params": learnt, "lr": prior_rate * rate}] if learnt else groups


def _counted(values: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Values of a batch of that many rows; of none, NaNs, since every process must add the same names."""
    return values if rows else {name: torch.full_like(value, torch.nan) for name, value in values.items()}


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())).lengths)


def of_networks(model: MultimodalVAE) -> list[nn.Parameter]:
    """All parameters but those of a prior learnt with the model: where its parts lie is no weight."""
    learnt = set() if model.learnt is None else {id(parameter) for parameter in model.learnt.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in learnt]
