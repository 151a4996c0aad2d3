"""MultimodalVAE: modalities that share one latent. Posterior, generation, sampling and likelihood; no loss inside."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from mmseqvae.decoders import TokenDecoder
from mmseqvae.fusion import Encoded, Fusion, poe
from mmseqvae.gaussian import Gaussian, Law, Posterior
from mmseqvae.modalities import Decoder, Modality
from mmseqvae.priors import Mixture, Prior, StandardNormal, VampPrior, fit_mixture
from mmseqvae.sampling import FrameSampling, Sampling, TokenSampling
from mmseqvae.sequence import Sequence

Batch = Mapping[str, Sequence]
ROWS = 1024  # latent draws that go through a decoder at once when scoring


class MultimodalVAE(nn.Module):
    """Several sequence modalities, one latent z, and a posterior that fuses what their encoders say.

        p(z) prod_m p(x_m | z)        q(z | x_S) = fusion of the experts q(z | x_m), m in S

    modalities: {name: Modality}; a batch is {view: Sequence of B}. An absent view, or a row of length 0, is missing.
    fusion: see `mmseqvae.fusion`; by default the product of experts. Raises ValueError where latents differ in size or
    no modality has an encoder.

    Three priors: `standard` is N(0, I); `learnt`, if there is one, is trained with the model; `fitted` is set after
    training. `training_prior` is learnt or standard; `prior`, which `sample` and `log_prob` use unless told otherwise,
    is fitted or learnt or standard.
    """

    def __init__(self, modalities: Mapping[str, Modality], fusion: Fusion = poe, prior: Prior | None = None) -> None:
        super().__init__()
        sizes = {name: modality.latent for name, modality in modalities.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"all modalities must share one size of latent, got {sizes}")
        if all(modality.encoder is None for modality in modalities.values()):
            raise ValueError("at least one modality needs an encoder")
        self.latent = next(iter(sizes.values()))
        self.modalities = nn.ModuleDict(modalities)
        self.fusion = fusion
        self.standard = StandardNormal(self.latent)
        self.learnt = prior
        if isinstance(prior, VampPrior):
            prior.encode = self.encode
        self.fitted: Mixture | None = None

    @property
    def training_prior(self) -> Prior:
        return self.standard if self.learnt is None else self.learnt

    @property
    def prior(self) -> Prior:
        return self.training_prior if self.fitted is None else self.fitted

    @property
    def device(self) -> torch.device:
        return self.standard.zero.device

    def generator(self, seed: int) -> torch.Generator:
        """A seeded source of noise where the model is."""
        return torch.Generator(self.device).manual_seed(seed)

    @property
    def readable(self) -> list[str]:
        """Modalities with an encoder."""
        return [name for name, modality in self._named() if modality.encoder is not None]

    @property
    def writable(self) -> list[str]:
        """Modalities with a decoder."""
        return [name for name, modality in self._named() if modality.decoder is not None]

    def encode(self, batch: Batch, given: Iterable[str] | None = None) -> Encoded:
        """Run the encoder of every modality in `given` (default: all readable) that the batch holds, once.

        What is not in `given`, or not in the batch, is there as absent.
        """
        names = self._check(given, self.readable, "given")
        like = self.standard.zero.expand(_rows(batch), -1)
        self._check_views(batch, names if given is not None else [])
        missing = torch.zeros(len(like), dtype=torch.bool, device=like.device)
        experts = {name: Gaussian.standard_like(like) for name in self.readable}
        present = dict.fromkeys(self.readable, missing)
        for name in names:
            view = self.modality(name).reads or name
            if view in batch:
                encoder = self.modality(name).encoder
                assert encoder is not None
                experts[name], present[name] = encoder(batch[view]), batch[view].present
        mean, logvar = (torch.stack([getattr(e, key) for e in experts.values()]) for key in ("mean", "logvar"))
        stacked = Gaussian(mean, logvar)
        return Encoded(stacked, torch.stack([*present.values()]), tuple(experts), self.fusion, like)

    def posterior(self, batch: Batch, given: Iterable[str] | None = None) -> Posterior:
        """q(z | x_given), one law a row [B, D]: rsample(n), log_prob(z), mean, variance.

        A row with nothing observed gets N(0, I); `generate` draws such rows from `prior` instead.
        """
        return self.encode(batch, given).posterior()

    def log_likelihood(self, z: Tensor, batch: Batch, want: Iterable[str] | None = None) -> dict[str, Tensor]:
        """log p(x_m | z) in nats an item, each wanted decoder called once: z [..., B, D] -> {name: [..., B]}.

        0 for missing rows. `want` defaults to every writable modality that the batch holds.
        """
        scores: dict[str, Tensor] = {}
        for name in self._check(want, self.writable, "want"):
            view = self.modality(name).writes or name
            if view in batch:
                scores[name] = batch[view].sum_steps(self._decoder(name).log_prob(z, batch[view]))
        return scores

    def log_prob(
        self,
        batch: Batch,
        want: Iterable[str] | None = None,
        given: Iterable[str] | None = None,
        draws: int = 100,
        prior: Prior | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Importance-weighted log p(x_want) or log p(x_want | x_given) in nats, [B].

        Without `given`: a lower bound on the joint or marginal log-likelihood under `prior` that rises with `draws`
        (Burda et al. 2016, eq. 8). With `given`: `bound_difference`, an estimate, no bound.
        """
        if given is not None:
            return self.bound_difference(batch, want, given, draws, prior, generator)
        return log_mean_exp(self.log_weights(batch, want, draws, prior, generator))

    def bound_difference(
        self,
        batch: Batch,
        want: Iterable[str] | None,
        given: Iterable[str],
        draws: int = 100,
        prior: Prior | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """bound on log p(x_want, x_given) minus bound on log p(x_given): an *estimate* of log p(x_want | x_given), [B].

        The difference of two lower bounds bounds nothing; both gaps shrink as `draws` rises.
        """
        given = self._check(given, self.writable, "given")
        want = [name for name in self._check(want, self.writable, "want") if name not in given]
        if not want:
            raise ValueError("want and given name the same modalities: nothing is left to score")
        joint = self.log_weights(batch, [*want, *given], draws, prior, generator)
        return log_mean_exp(joint) - log_mean_exp(self.log_weights(batch, given, draws, prior, generator))

    def log_weights(
        self,
        batch: Batch,
        want: Iterable[str] | None = None,
        draws: int = 100,
        prior: Prior | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """log p(x_want, z_k) - log q(z_k | x_want) of draws z_k ~ q, [K, B] nats.

        The proposal reads the wanted modalities that have an encoder; where none has, it is N(0, I).
        """
        names = self._check(want, self.writable, "want")
        prior = prior or self.prior
        readable = [name for name in names if name in self.readable and (self.modality(name).reads or name) in batch]
        q = self.posterior(batch, readable)
        return torch.cat(
            [
                sum(scores.values(), prior.log_prob(z) - q.log_prob(z))
                for z, scores in self.scored_draws(q, batch, names, draws, generator)
            ]
        )

    def scored_draws(
        self,
        q: Law,
        batch: Batch,
        want: Iterable[str] | None = None,
        draws: int = 100,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Draws z ~ q [B, D] and their `log_likelihood`, as many at a time as go through a decoder well.

        Yields z [k, B, D] and {name: [k, B]} nats, `draws` in all.
        """
        for size in _split(draws, max(1, ROWS // max(1, len(q.mean)))):
            z = q.rsample(size, generator)
            yield z, self.log_likelihood(z, batch, want)

    @torch.no_grad()
    def generate(
        self,
        batch: Batch,
        want: Iterable[str] | None = None,
        given: Iterable[str] | None = None,
        samples: int = 1,
        decode: Mapping[str, Sampling] | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Sequence]:
        """Draw z ~ q(z | x_given), then every modality in `want`: {name: Sequence of B * samples}.

        The draws of a row stand together: row b * samples + s. Rows with nothing observed draw z from `prior`.
        """
        encoded = self.encode(batch, given)
        z = encoded.posterior().rsample(samples, generator)
        known = encoded.known.expand(z.shape)
        if not known.all():
            z = self.prior.complete(z.flatten(0, 1), known.flatten(0, 1), generator).reshape(z.shape)
        return self.decode(rearrange(z, "s b d -> (b s) d"), want, decode, generator)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        want: Iterable[str] | None = None,
        prior: Prior | None = None,
        decode: Mapping[str, Sampling] | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Sequence]:
        """Draw n latents from `prior` (default: the model's own, see above) and decode them."""
        return self.decode((prior or self.prior).sample(n, generator), want, decode, generator)

    @torch.no_grad()
    def interpolate(
        self,
        a: Batch,
        b: Batch,
        steps: int,
        want: Iterable[str] | None = None,
        decode: Mapping[str, Sampling] | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Sequence]:
        """Decode `steps` points on the straight line between the posterior means of a and b, both ends included.

        The points of a row stand together: row i * steps + s. Raises ValueError for fewer than 2 steps.
        """
        if steps < 2:
            raise ValueError(f"steps must be at least 2 (both ends are included), got {steps}")
        start, end = self.posterior(a).mean, self.posterior(b).mean
        if start.shape != end.shape:
            raise ValueError(f"a has {len(start)} rows and b has {len(end)}")
        share = torch.linspace(0, 1, steps, device=start.device, dtype=start.dtype)
        z = torch.lerp(start[:, None], end[:, None], share[:, None])
        return self.decode(rearrange(z, "b s d -> (b s) d"), want, decode, generator)

    @torch.no_grad()
    def decode(
        self,
        z: Tensor,
        want: Iterable[str] | None = None,
        decode: Mapping[str, Sampling] | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Sequence]:
        """Free-running draws from latents z [N, D]: {name: Sequence of N}.

        `decode` gives a TokenSampling or FrameSampling a modality; by default tokens are greedy, frames at noise 0.5.
        """
        names = self._check(want, self.writable, "want")
        unused = set(decode or ()) - set(names)
        if unused:
            raise ValueError(f"decode names {sorted(unused)}, which are not among the wanted modalities {names}")
        out: dict[str, Sequence] = {}
        for name in names:
            decoder = self._decoder(name)
            default: Sampling = TokenSampling() if isinstance(decoder, TokenDecoder) else FrameSampling()
            how = (decode or {}).get(name, default)
            if type(how) is not type(default):
                raise ValueError(f"{name} is drawn with {type(default).__name__}, got {type(how).__name__}")
            out[name] = decoder.sample(z, how, generator)  # type: ignore[arg-type]
        return out

    def fit_prior(
        self, z: Tensor, components: int, seed: int = 0, progress: bool = False, valid: Tensor | None = None
    ) -> Mixture:
        """Set `fitted` to what `fit_mixture` makes of draws z [N, D] from training posteriors, and return it."""
        self.fitted = fit_mixture(z, components, seed, progress, valid)
        return self.fitted

    def _check_views(self, batch: Batch, needed: list[str]) -> None:
        """Raise ValueError for a view that no modality knows, and where the view of a needed modality is absent."""
        known = {view for name, m in self._named() for view in (m.reads or name, m.writes or name)}
        strange = sorted(set(batch) - known)
        if strange:
            raise ValueError(f"the batch holds {strange}; this model reads and writes {sorted(known)}")
        absent = [name for name in needed if (self.modality(name).reads or name) not in batch]
        if absent:
            raise ValueError(f"given names {absent}, but the batch holds only {sorted(batch)}")

    def _named(self) -> list[tuple[str, Modality]]:
        return [(name, modality) for name, modality in self.modalities.items() if isinstance(modality, Modality)]

    def modality(self, name: str) -> Modality:
        """The modality of that name."""
        modality = self.modalities[name]
        assert isinstance(modality, Modality)
        return modality

    def _decoder(self, name: str) -> Decoder:
        decoder = self.modality(name).decoder
        assert decoder is not None
        return decoder

    def _check(self, names: Iterable[str] | None, allowed: list[str], argument: str) -> list[str]:
        if names is None:
            return allowed
        if isinstance(names, str):
            names = [names]
        chosen = list(dict.fromkeys(names))
        wrong = [name for name in chosen if name not in allowed]
        if wrong:
            raise ValueError(f"{argument} names {wrong}; this model has {allowed} for that")
        return chosen


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """ln of the mean over the first dimension: [K, ...] -> [...]."""
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def effective_draws(log_weights: Tensor) -> Tensor:
    """Kish's effective sample size (sum w)^2 / sum w^2 over the first dimension: [K, B] -> [B], from 1 to K."""
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()


def _rows(batch: Batch) -> int:
    sizes = {view: len(sequence) for view, sequence in batch.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"all views of a batch must have the same number of rows, got {sizes or 'an empty batch'}")
    return next(iter(sizes.values()))


def _split(total: int, size: int) -> list[int]:
    if total < 1:
        raise ValueError(f"draws must be at least 1, got {total}")
    return [min(size, total - start) for start in range(0, total, size)]
