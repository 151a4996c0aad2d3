"""MultiVae's models of spoken words with its users' kind of networks, and one way to ask them all the same questions.

Networks: bidirectional GRU 128 reads the frames, 64 the characters (last states, one linear layer to mean and
log-variance); GRU 128 and 64 fed the latent at every step write them. Settings are MultiVae's defaults but for: a
latent of 32, K = 1 where the default of 10 importance draws makes an epoch six times as long, a warm-up of at most a
third of the training, categorical characters, and its own rescaling of likelihoods to the size of the largest modality.
Nothing of MultiVae is changed; what it lacks or does wrong in judging is computed here from its own networks.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from multivae import models
from multivae.data.datasets import MultimodalBaseDataset
from multivae.models.nn.base_architectures import BaseMultilatentEncoder
from multivae.trainers import BaseTrainer, BaseTrainerConfig
from multivae.trainers.base.utils import set_seed
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from mmseqvae.inference.importance_sampling import log_mean_exp
from mmseqvae.priors.base import Prior

LATENT = 32
PRIVATE = 16  # MMVAE+: dimensions of each private latent, beside as many shared ones: a decoder reads 32 everywhere
BATCH = 64
LEARNING_RATE = 2e-3
UNITS = {"audio": 128, "text": 64}

Data = Mapping[str, Tensor]  # {modality: [B, steps, channels]}
Shapes = Mapping[str, tuple[int, int]]  # {modality: (steps, channels)}


class GRUEncoder(BaseEncoder):
    """[B, T, C] -> mean and log-variance [B, D], and of a private latent where there is one."""

    def __init__(self, channels: int, hidden: int, latent: int, private: int = 0) -> None:
        super().__init__()
        self.latent_dim, self.style_dim = latent, private
        self.rnn = nn.GRU(channels, hidden, batch_first=True, bidirectional=True)
        self.to_latent = nn.Linear(2 * hidden, 2 * (latent + private))

    def forward(self, x: Tensor) -> ModelOutput:
        _, state = self.rnn(x)  # [2, B, H]
        mean, logvar = self.to_latent(torch.cat([state[0], state[1]], -1)).chunk(2, -1)
        shared = slice(0, self.latent_dim)
        out = ModelOutput(embedding=mean[:, shared], log_covariance=logvar[:, shared])
        if self.style_dim:
            out["style_embedding"] = mean[:, self.latent_dim :]
            out["style_log_covariance"] = logvar[:, self.latent_dim :]
        return out


class PrivateGRUEncoder(GRUEncoder, BaseMultilatentEncoder):
    """The same under the base class that MultiVae asks for where there are private latents."""


class GRUDecoder(BaseDecoder):
    """[B, D] -> [B, T, C]: the latent at every step and, through one layer, as initial state."""

    def __init__(self, steps: int, channels: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.steps = steps
        self.to_state = nn.Linear(latent, hidden)
        self.rnn = nn.GRU(latent, hidden, batch_first=True)
        self.to_output = nn.Linear(hidden, channels)

    def forward(self, z: Tensor) -> ModelOutput:
        hidden, _ = self.rnn(z[:, None].expand(-1, self.steps, -1), self.to_state(z).tanh()[None])
        return ModelOutput(reconstruction=self.to_output(hidden))


@dataclass(frozen=True)
class Kind:
    """One of MultiVae's models: the names of its class and configuration, and settings other than its defaults."""

    model: str
    settings: Mapping[str, Any]
    private: int = 0

    @property
    def shared(self) -> int:
        """Dimensions of the latent that all modalities share."""
        return LATENT - self.private


KINDS = {
    "MVAE": Kind("MVAE", {}),
    "MMVAE": Kind("MMVAE", {"K": 1}),
    "MoPoE": Kind("MoPoE", {}),
    "MVTCAE": Kind("MVTCAE", {}),
    "MMVAE+": Kind("MMVAEPlus", {"K": 1}, PRIVATE),
}


def build(kind: Kind, shapes: Shapes, warm_up: int = 10) -> Any:
    """The model with new weights. `warm_up`: epochs of it, for those that have one."""
    names = {"n_modalities": len(shapes), "latent_dim": kind.shared, "input_dims": dict(shapes)}
    settings: dict[str, Any] = {
        "uses_likelihood_rescaling": True,
        "decoders_dist": {name: "categorical" if name == "text" else "normal" for name in shapes},
        **({"modalities_specific_dim": kind.private} if kind.private else {}),
        **kind.settings,
    }
    config = getattr(models, f"{kind.model}Config")
    if hasattr(config, "warmup") and "warmup" not in settings:
        settings["warmup"] = warm_up
    encoder = PrivateGRUEncoder if kind.private else GRUEncoder
    encoders = {
        name: encoder(channels, UNITS[name], kind.shared, kind.private) for name, (_, channels) in shapes.items()
    }
    decoders = {name: GRUDecoder(steps, channels, UNITS[name], LATENT) for name, (steps, channels) in shapes.items()}
    return getattr(models, kind.model)(config(**names, **settings), encoders=encoders, decoders=decoders)


def rescaling(shapes: Shapes) -> dict[str, float]:
    """MultiVae's own weights of the modalities: the largest size over its own."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    return {name: max(sizes.values()) / size for name, size in sizes.items()}


# ------------------------------------------------------------------------------------------------------- training


@contextmanager
def quiet() -> Iterator[None]:
    """Without the greetings of MultiVae's trainer, which name a temporary folder."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def trainer(model: Any, data: Data, epochs: int, seed: int, folder: str) -> Any:
    """MultiVae's own trainer, as its documentation uses it."""
    config = BaseTrainerConfig(
        output_dir=folder, per_device_train_batch_size=BATCH, num_epochs=epochs, learning_rate=LEARNING_RATE,
        seed=seed, no_cuda=True, keep_best_on_train=True,
    )  # fmt: skip
    return BaseTrainer(model, MultimodalBaseDataset(dict(data)), training_config=config)


def train(kind: Kind, data: Data, seconds: float, seed: int) -> tuple[Any, dict[str, Any]]:
    """Train for as many epochs as fit into `seconds` of processor time, at least one; the model it keeps, and how.

    Keeps what MultiVae keeps: the weights with the least training loss after the warm-up. Global generators of noise,
    which MultiVae draws from, are set to `seed` before and after.
    """
    set_seed(seed)
    shapes: Shapes = {name: (values.shape[1], values.shape[2]) for name, values in data.items()}
    rows = len(next(iter(data.values())))
    with quiet(), tempfile.TemporaryDirectory() as folder:
        probe = {name: values[: 10 * BATCH] for name, values in data.items()}
        tried = trainer(build(kind, shapes), probe, 1, seed, folder)
        tried.train_step(1)
        started = time.process_time()
        tried.train_step(2)
        pace = (time.process_time() - started) / len(next(iter(probe.values())))  # seconds a sample
        epochs = max(1, round(seconds / (pace * rows)))

        set_seed(seed)
        run = trainer(build(kind, shapes, warm_up=min(10, epochs // 3)), data, epochs, seed, folder)
        started = time.process_time()
        run.train()
        taken = time.process_time() - started
        model = deepcopy(run._best_model).eval()
    set_seed(seed)
    return model, {
        "epochs": epochs,
        "seconds": taken,
        "samples_a_second": epochs * rows / taken,
        "parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    }


# -------------------------------------------------------------------------------------------------------- judging


class Peer:
    """A trained model, asked in the same way whichever it is. A latent is a row [shared | private of each modality].

    Draws come from torch's and numpy's global generators, as MultiVae's do.
    """

    def __init__(self, kind: Kind, model: Any, shapes: Shapes) -> None:
        self.kind, self.model, self.shapes = kind, model.eval(), shapes

    @torch.no_grad()
    def write(self, data: Data, given: str, want: str) -> Tensor:
        """One output [B, T, C] a row from one modality, by MultiVae's `predict`: the mean of the frames, logits."""
        rows = len(data[given])
        # MoPoE runs every encoder whatever is given, so the others get something to read.
        filled = {name: data.get(name, torch.zeros(rows, *shape)) for name, shape in self.shapes.items()}
        return self.model.predict(MultimodalBaseDataset(filled), cond_mod=given, gen_mod=want)[want]

    @torch.no_grad()
    def decode(self, z: Tensor) -> dict[str, Tensor]:
        """Latents [..., D] -> outputs [..., T, C]."""
        made = {}
        for place, name in enumerate(self.shapes):
            start = self.kind.shared + place * self.kind.private
            own = torch.cat([z[..., : self.kind.shared], z[..., start : start + self.kind.private]], -1)
            out = self.model.decoders[name](own.flatten(0, -2)).reconstruction
            made[name] = out.unflatten(0, z.shape[:-1])
        return made

    @torch.no_grad()
    def sample_prior(self, n: int) -> Tensor:
        """Latents [n, D] by MultiVae's `generate_from_prior`, where every decoder reads the same private part."""
        z = self.model.generate_from_prior(n).z
        private = z[:, self.kind.shared :]
        return torch.cat([z[:, : self.kind.shared], *[private] * len(self.shapes)], -1) if self.kind.private else z

    @torch.no_grad()
    def posterior_draws(self, data: Data) -> Tensor:
        """One latent a row from the joint posterior with which the model is trained, mixtures drawn row by row."""
        parts, private = self._posterior(data)
        z = torch.stack([part.sample() for part in parts])  # [S, B, D]
        which = torch.randint(len(parts), (z.shape[1],))
        return torch.cat([z[which, torch.arange(z.shape[1])], *[p.sample() for p in private]], -1)

    @torch.no_grad()
    def joint_nll(self, data: Data, draws: int = 100, fitted: Prior | None = None) -> dict[str, float]:
        """Importance-weighted joint negative log-likelihood, nats an item, under its own prior and the fitted one.

        Its own likelihoods, unweighted: frames with scale 1 in standardised units and every character, padding
        scored. The draws are spread evenly over the parts of the posterior. MultiVae's `compute_joint_nll` draws from
        one part of a mixture and divides by all of it (MMVAE, MoPoE), or leaves a modality out (MMVAE+).
        """
        parts, private = self._posterior(data)
        share = [draws // len(parts) + (index < draws % len(parts)) for index in range(len(parts))]
        z = torch.cat([part.sample(torch.Size([n])) for part, n in zip(parts, share, strict=True)])  # [K, B, D]
        log_q = torch.stack(
            [part.log_prob(z).sum(-1) + math.log(n / draws) for part, n in zip(parts, share, strict=True)]
        ).logsumexp(0)
        own = [p.sample(torch.Size([draws])) for p in private]
        log_q = log_q + sum(p.log_prob(w).sum(-1) for p, w in zip(private, own, strict=True))
        whole = torch.cat([z, *own], -1)
        scores = torch.stack([self._log_likelihood(latent, data) for latent in whole]) - log_q
        found = {"prior": -log_mean_exp(scores + self._log_prior(whole))}
        if fitted is not None:
            found["fitted"] = -log_mean_exp(scores + fitted.log_prob(whole))
        return {name: float(nll.mean()) for name, nll in found.items()}

    def _log_likelihood(self, z: Tensor, data: Data) -> Tensor:
        """log p(x | z), [B, D] -> [B]."""
        scored = self.model.recon_log_probs
        terms = [scored[name](made, data[name]).flatten(1).sum(-1) for name, made in self.decode(z).items()]
        return torch.stack(terms).sum(0)

    def _log_prior(self, z: Tensor) -> Tensor:
        """[..., D] -> [...]."""
        if not hasattr(self.model, "pz_params"):
            return Normal(0.0, 1.0).log_prob(z).sum(-1)
        mean, scale = (values.squeeze(0) for values in self.model.pz_params)
        shared = self.kind.shared
        repeats = [slice(0, shared), *[slice(shared, None)] * len(self.shapes)] if self.kind.private else [slice(None)]
        prior = self.model.prior_dist(torch.cat([mean[s] for s in repeats]), torch.cat([scale[s] for s in repeats]))
        return prior.log_prob(z).sum(-1)

    def _posterior(self, data: Data) -> tuple[list[Distribution], list[Distribution]]:
        """q(z | x): equally likely parts of the shared latent [B, D], and the private posteriors in order."""
        model, inputs = self.model, MultimodalBaseDataset({name: data[name] for name in self.shapes})
        if self.kind.model == "MVAE":
            return [_normal(*model.compute_mu_log_var_subset(inputs, list(self.shapes)))], []
        if self.kind.model == "MVTCAE":
            return [_normal(*model._inference(inputs)["joint"])], []
        if self.kind.model == "MoPoE":
            found = model.inference(inputs)
            return [_normal(*part) for part in zip(found["mus"], found["logvars"], strict=True)], []
        scale = model._log_var_to_std if self.kind.private else model.log_var_to_std
        outputs = [model.encoders[name](data[name]) for name in self.shapes]
        parts = [model.post_dist(out.embedding, scale(out.log_covariance)) for out in outputs]
        if not self.kind.private:
            return parts, []
        return parts, [model.post_dist(out.style_embedding, scale(out.style_log_covariance)) for out in outputs]


def _normal(mean: Tensor, logvar: Tensor) -> Normal:
    return Normal(mean, (0.5 * logvar).exp())
