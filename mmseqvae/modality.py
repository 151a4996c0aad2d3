"""A modality is an encoder that reads one view of it and a decoder that writes one; either may be absent.

Together they divide the latent: [shared | private of the first modality | private of the second | ...].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from mmseqvae.decoding import FrameSampling, Sampling, TokenSampling
from mmseqvae.distributions.gaussian import Gaussian
from mmseqvae.sequence import Sequence, constant

Batch = Mapping[str, Sequence]
Writes = Literal["tokens", "frames"]


class Decoder(Protocol):
    """What a model asks of a decoder; any module that offers it will do.

    latent: width of z; writes: "tokens" or "frames". `sample` gets a `TokenSampling` or a `FrameSampling`. One that
    also has `complete(z, x, how, generator) -> values` can forecast and fill holes.
    """

    latent: int
    writes: Writes

    def log_prob(self, z: Tensor, x: Sequence) -> Tensor:
        """log p(x_t | x_<t, z) in nats: z [..., B, D], x of B -> [..., B, T], 0 where not observed."""
        ...

    def sample(self, z: Tensor, how: Any, generator: torch.Generator | None = None) -> Sequence:
        """Free-running draws, one a row: z [N, D] -> Sequence of N."""
        ...


def as_read(view: str) -> str:
    """The batch key of what encoders read in place of a view, if the batch holds it, such as frames with noise added.

    It differs from the view in its values alone. Decoders are scored on the view itself.
    """
    return f"{view} as read"


class Modality(nn.Module):
    """One modality of a model.

    reads, writes: the batch keys of the view that the encoder reads and of the view that the decoder is scored on;
    by default both are the modality's own name. Encode speech features and write log-mels with
    `Modality(encoder, decoder, reads="features", writes="audio")`. private: how many dimensions, the last ones of its
    latent, only this modality reads and writes. conditions: what the decoder reads behind the latent, the width of the
    model's covariates. Any encoder `Sequence -> Gaussian` with an attribute `latent` will do, and any `Decoder`;
    `mmseqvae.testing` checks them. Raises ValueError with neither part, where the two disagree about the size of the
    latent, where nothing would be shared, or where a decoder does not say what it writes.
    """

    def __init__(
        self,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
        *,
        reads: str | None = None,
        writes: str | None = None,
        private: int = 0,
        conditions: int = 0,
    ) -> None:
        super().__init__()
        for part in (encoder, decoder):
            if part is not None and not isinstance(getattr(part, "latent", None), int):
                raise ValueError(f"{type(part).__name__} needs an attribute `latent`, how many dimensions z has for it")
        if decoder is not None and getattr(decoder, "writes", None) not in ("tokens", "frames"):
            raise ValueError(f'{type(decoder).__name__} needs an attribute `writes`, which is "tokens" or "frames"')
        sizes: set[Any] = set() if encoder is None else {encoder.latent}
        sizes |= set() if decoder is None else {cast(Any, decoder).latent - conditions}
        if not sizes:
            raise ValueError("a modality needs an encoder, a decoder or both")
        if len(sizes) > 1:
            raise ValueError(f"the encoder and the decoder of a modality disagree about the latent: {sorted(sizes)}")
        self.latent: int = sizes.pop()
        if not 0 <= private < self.latent:
            raise ValueError(f"private must leave something shared of {self.latent} dimensions, got {private}")
        self.encoder, self.decoder = encoder, decoder
        self.reads, self.writes = reads, writes
        self.private, self.conditions = private, conditions


class Modalities(nn.ModuleDict):
    """The modalities of a model by name, how they divide its latent, and their parts run on the rows that are there.

    latent: D; shared: how many of its dimensions, the first ones, all modalities share. Raises ValueError where the
    modalities disagree about them or none has an encoder.
    """

    def __init__(self, modalities: Mapping[str, Modality]) -> None:
        super().__init__(modalities)
        sizes = {name: modality.latent - modality.private for name, modality in modalities.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"all modalities must share one size of latent, got {sizes}")
        if all(modality.encoder is None for modality in modalities.values()):
            raise ValueError("at least one modality needs an encoder")
        self.shared = next(iter(sizes.values()))
        self.private: dict[str, tuple[int, int]] = {}
        end = self.shared
        for name, modality in modalities.items():
            self.private[name] = (end, end + modality.private)
            end += modality.private
        self.latent = end

    def modality(self, name: str) -> Modality:
        modality = self[name]
        assert isinstance(modality, Modality)
        return modality

    @property
    def readable(self) -> list[str]:
        return [name for name in self if self.modality(name).encoder is not None]

    @property
    def writable(self) -> list[str]:
        return [name for name in self if self.modality(name).decoder is not None]

    def reads(self, name: str) -> str:
        return self.modality(name).reads or name

    def writes(self, name: str) -> str:
        return self.modality(name).writes or name

    def decoder(self, name: str) -> Decoder:
        return cast(Decoder, self.modality(name).decoder)

    def writes_tokens(self, name: str) -> bool:
        """Whether a modality that has a decoder is written in tokens; else it is in frames."""
        return self.decoder(name).writes == "tokens"

    def how(
        self, names: list[str], decode: Mapping[str, Sampling] | None, frames: FrameSampling, tokens: TokenSampling
    ) -> dict[str, Sampling]:
        """How each modality is drawn: as `decode` says, by default as `frames` or `tokens`. ValueError for misfits."""
        unused = set(decode or ()) - set(names)
        if unused:
            raise ValueError(f"decode names {sorted(unused)}, which are not among the wanted modalities {names}")
        ways: dict[str, Sampling] = {}
        for name in names:
            default: Sampling = tokens if self.writes_tokens(name) else frames
            ways[name] = (decode or {}).get(name, default)
            if type(ways[name]) is not type(default):
                raise ValueError(f"{name} is drawn with {type(default).__name__}, got {type(ways[name]).__name__}")
        return ways

    def columns(self, name: str) -> list[int]:
        """The dimensions of the latent that a modality reads and writes: the shared ones, then its own."""
        return [*range(self.shared), *range(*self.private[name])]

    def speaks(self, device: torch.device) -> Tensor | None:
        """Which dimensions each readable modality speaks of, [M, D] bool; None where each speaks of all."""
        if self.shared == self.latent:
            return None
        own = [self.columns(name) for name in self.readable]
        return constant(tuple(tuple(d in columns for d in range(self.latent)) for columns in own), torch.bool, device)

    def read_all(self, batch: Batch, names: list[str], like: Tensor) -> tuple[Gaussian, Tensor]:
        """The experts of all readable modalities, [M, B, D], and where they are there, [M, B] bool; like: [B, D].

        Encoders of `names` run, once each, where the batch holds their view; the others are absent.
        """
        absent = torch.zeros(len(like), dtype=torch.bool, device=like.device)
        experts = {name: Gaussian.standard_like(like) for name in self.readable}
        present = dict.fromkeys(self.readable, absent)
        for name in names:
            view = self.reads(name)
            if view in batch:
                x = batch.get(as_read(view), batch[view])
                experts[name], present[name] = self.read(name, x, like), x.present
        mean, logvar = (torch.stack([getattr(e, key) for e in experts.values()]) for key in ("mean", "logvar"))
        return Gaussian(mean, logvar), torch.stack([*present.values()])

    def read(self, name: str, x: Sequence, like: Tensor) -> Gaussian:
        """One expert an item, x of B -> Gaussian [B, D], by running the encoder on the rows that are there only.

        Anything stands in other rows and in other modalities' private dimensions. An encoder that reads no row has a
        gradient of zero, not none. like: [B, D].
        """
        encoder = self.modality(name).encoder
        assert encoder is not None
        rows = x.rows_present()
        if rows is not None and not len(rows):
            nothing = like + _no_gradient(encoder)
            return Gaussian(nothing, nothing)
        own = encoder(x if rows is None else x[rows])
        mean, logvar = (self._spread(name, t) for t in (own.mean, own.logvar))
        if rows is not None:
            mean, logvar = (t.new_zeros(len(x), self.latent).index_copy(0, rows, t) for t in (mean, logvar))
        return Gaussian(mean, logvar)

    def score(self, name: str, z: Tensor, x: Sequence, context: Tensor | None = None) -> Tensor:
        """log p(x | z) in nats an item, z [..., B, D] -> [..., B], by running the decoder on the rows that are there.

        0 in other rows. context: what the covariates say, [B, W].
        """
        decoder = self.decoder(name)
        rows, total = x.rows_present(), z.shape[:-1]
        if rows is not None and not len(rows):
            return z.new_zeros(total) + _no_gradient(cast(nn.Module, decoder))
        if rows is not None:
            x, z = x[rows], z[..., rows, :]
            context = None if context is None else context[rows]
        scores = x.sum_steps(decoder.log_prob(self.decoded(name, z, context), x))
        return scores if rows is None else scores.new_zeros(total).index_copy(-1, rows, scores)

    def complete(
        self, name: str, z: Tensor, x: Sequence, how: Sampling, generator: torch.Generator | None = None
    ) -> Tensor:
        """x of N with every unobserved step drawn by the decoder, given z [N, D] as `decoded` makes it: [N, T, ...].

        Raises ValueError where the decoder cannot.
        """
        decoder = self.decoder(name)
        if not hasattr(decoder, "complete"):
            raise ValueError(f"the decoder of {name} has no method `complete`: it can neither forecast nor fill holes")
        values: Tensor = decoder.complete(z, x, how, generator)
        return values

    def decoded(self, name: str, z: Tensor, context: Tensor | None = None) -> Tensor:
        """What a decoder reads of latents z [..., D]: the shared and its private dimensions, then the context."""
        pieces = [z]
        if self.shared < self.latent:
            first, last = self.private[name]
            pieces = [z[..., : self.shared], z[..., first:last]]
        if context is not None:
            pieces.append(context.expand(*z.shape[:-1], -1))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)

    def check(self, names: Iterable[str] | None, allowed: list[str], argument: str) -> list[str]:
        """The names as a list, by default all that are `allowed`; ValueError for others."""
        if names is None:
            return allowed
        chosen = [names] if isinstance(names, str) else list(dict.fromkeys(names))
        wrong = [name for name in chosen if name not in allowed]
        if wrong:
            raise ValueError(f"{argument} names {wrong}; this model has {allowed} for that")
        return chosen

    def check_views(self, batch: Batch, needed: list[str], covariates: Iterable[str]) -> None:
        """Raise ValueError for a view that nothing knows, and where the view of a needed modality is absent."""
        known = {view for name in self for view in (self.reads(name), self.writes(name))} | set(covariates)
        strange = sorted(set(batch) - known - {as_read(self.reads(name)) for name in self})
        if strange:
            raise ValueError(f"the batch holds {strange}; this model reads and writes {sorted(known)}")
        absent = [name for name in needed if self.reads(name) not in batch]
        if absent:
            raise ValueError(f"given names {absent}, but the batch holds only {sorted(batch)}")

    def _spread(self, name: str, own: Tensor) -> Tensor:
        """The dimensions that a modality reads -> all D: [B, shared + private] -> [B, D], zeros in the others."""
        if self.shared == self.latent:
            return own
        first, last = self.private[name]
        zeros = own.new_zeros(len(own), self.latent)
        shared, private = own[:, : self.shared], own[:, self.shared :]
        return torch.cat([shared, zeros[:, self.shared : first], private, zeros[:, last:]], -1)


class Covariate(nn.Module):
    """Something known that conditions every decoder and is not modelled, such as the speaker: p(x | z, c).

    Its view holds one token an item, 0..vocabulary-1; the embedding stands behind the latent. dropout: share of items
    whose covariate is hidden in training, so that what stands for an unknown one is learnt.
    """

    def __init__(self, vocabulary: int, width: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.vocabulary, self.width, self.dropout = vocabulary, width, dropout
        self.embedding = nn.Embedding(vocabulary + 1, width)  # the last row stands for an unknown one

    def forward(self, x: Sequence | None, rows: int) -> Tensor:
        """A view of B items, or None where nothing is known of `rows` items -> [B, W].

        Raises ValueError for a token outside the vocabulary.
        """
        device = self.embedding.weight.device
        unknown = torch.full((rows,), self.vocabulary, device=device)
        if x is None or not x.steps:
            return self.embedding(unknown)
        token = torch.where(x.mask[:, 0], x.values[:, 0], unknown)
        if token.device.type == "cpu" and bool(((token < 0) | (token > self.vocabulary)).any()):
            raise ValueError(f"a covariate has tokens 0..{self.vocabulary - 1}, got {sorted(set(token.tolist()))}")
        if self.training and self.dropout:
            token = torch.where(torch.rand(rows, device=device) < self.dropout, unknown, token)
        return self.embedding(token)


def _no_gradient(part: nn.Module) -> Tensor:
    """Zero, tied to all parameters of a part that has nothing to do, so that their gradient is zero and not absent."""
    total = torch.zeros(())
    for parameter in part.parameters() if torch.is_grad_enabled() else ():
        total = total.to(parameter) + 0 * parameter.sum()
    return total
