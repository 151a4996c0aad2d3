"""The same model written the obvious way, twice: what `benchmarks.speed.training` compares the library with.

`Plain(model)` holds the weights of a two-modality `MultimodalVAE` of tokens and frames and computes the same numbers
(tested): as *naive* code, with packed encoders and a loop over cells that concatenates z at every step, or as a
competent user writes it, with padded encoders and one call of a recurrent layer for all latent draws. Both score
padded steps and mask them (`ignore_index`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.distributions.gaussian import LOG_2PI, Gaussian
from mmseqvae.distributions.likelihoods import Normal
from mmseqvae.encoders import FrameEncoder, TokenEncoder
from mmseqvae.model import MultimodalVAE
from mmseqvae.rnn.layer import Recurrent
from mmseqvae.sequence import Sequence, step_mask


class Plain(nn.Module):
    """Text and audio encoders and decoders with the weights of `model`; naive: see above.

    The model: GRU of one layer, bidirectional encoders that read where each direction ends, one frame a step, a normal
    likelihood with learnt scales, nothing dropped. Raises ValueError for another one.
    """

    def __init__(self, model: MultimodalVAE, naive: bool) -> None:
        super().__init__()
        self.naive = naive
        text, audio = model.modality("text"), model.modality("audio")
        assert isinstance(text.encoder, TokenEncoder)
        assert isinstance(audio.encoder, FrameEncoder)
        assert isinstance(text.decoder, TokenDecoder)
        assert isinstance(audio.decoder, FrameDecoder)
        if audio.decoder.reduction != 1 or not isinstance(audio.decoder.likelihood, Normal):
            raise ValueError("the plain model writes one frame a step with a normal likelihood")
        self.embedding = nn.Embedding(*text.encoder.embedding.weight.shape)
        self.text = _Encoder(text.encoder.rnn, model.latent, naive)
        self.audio = _Encoder(audio.encoder.rnn, model.latent, naive)
        self.write = _Decoder(text.decoder.net.rnn, model.latent, text.decoder.vocabulary, naive)
        self.previous = nn.Embedding(*text.decoder.embedding.weight.shape)
        self.speak = _Decoder(audio.decoder.net.rnn, model.latent, audio.decoder.channels, naive)
        self.from_frame = nn.Linear(audio.decoder.channels, audio.decoder.net.rnn.forwards[0].input_size)  # type: ignore[arg-type]
        self.start = nn.Parameter(torch.zeros(audio.decoder.channels))
        self.to_end = nn.Linear(audio.decoder.net.rnn.hidden, 2)
        self.log_scale = nn.Parameter(torch.zeros(audio.decoder.channels))
        self.vocabulary, self.start_token = text.decoder.vocabulary, text.decoder.start_token
        self.load_state_dict({name: value.detach() for name, value in weights_of(model, naive).items()})

    def encode(self, batch: dict[str, Sequence]) -> list[Gaussian]:
        """One expert a modality, [B, D]."""
        text, audio = batch["text"], batch["audio"]
        return [self.text(self.embedding(text.values), text.lengths), self.audio(audio.values, audio.lengths)]

    def score(self, z: Tensor, batch: dict[str, Sequence]) -> Tensor:
        """log p(text | z) + log p(audio | z) in nats: z [S, B, D] -> [S, B]."""
        if self.naive:  # a pass for every subset of the modalities
            return torch.stack([self.words(each, batch["text"]) + self.frames(each, batch["audio"]) for each in z])
        subsets, rows = z.shape[:2]
        text, audio = (
            Sequence(x.values.repeat(subsets, *[1] * (x.values.ndim - 1)), x.lengths.repeat(subsets))
            for x in (batch["text"], batch["audio"])
        )
        return (self.words(z.flatten(0, 1), text) + self.frames(z.flatten(0, 1), audio)).reshape(subsets, rows)

    def words(self, z: Tensor, x: Sequence) -> Tensor:
        previous = F.pad(x.values, (1, -1), value=self.start_token)
        logits = self.write(z, self.previous(previous))
        target = torch.where(step_mask(x.lengths, x.steps), x.values, -100)
        nats = F.cross_entropy(logits.flatten(0, 1).float(), target.flatten(), ignore_index=-100, reduction="none")
        return -nats.reshape(target.shape).sum(1)

    def frames(self, z: Tensor, x: Sequence) -> Tensor:
        previous = torch.cat([self.start.expand(len(z), 1, -1), x.values[:, :-1]], 1)
        hidden = self.speak.hidden(z, self.from_frame(previous))
        error = (x.values - self.speak.to_output(hidden).float()) * (-self.log_scale).exp()
        nats = 0.5 * error.square().sum(-1) + self.log_scale.sum() + 0.5 * x.values.shape[2] * LOG_2PI
        t = torch.arange(x.steps, device=x.device)
        last = (t == x.lengths[:, None] - 1).long()
        end = self.to_end(hidden).float().log_softmax(-1).gather(-1, last[..., None]).squeeze(-1)
        return torch.where(step_mask(x.lengths, x.steps), end - nats, 0).sum(1)


class _Encoder(nn.Module):
    def __init__(self, rnn: Recurrent, latent: int, naive: bool) -> None:
        super().__init__()
        layer = rnn.forwards[0]
        assert isinstance(layer, nn.RNNBase)
        self.naive = naive
        self.ahead = nn.GRU(layer.input_size, rnn.hidden, batch_first=True)
        self.behind = nn.GRU(layer.input_size, rnn.hidden, batch_first=True)
        self.to_latent = nn.Linear(2 * rnn.hidden, 2 * latent)

    def forward(self, x: Tensor, lengths: Tensor) -> Gaussian:
        t = torch.arange(x.shape[1], device=x.device)
        turned = torch.where(step_mask(lengths, x.shape[1]), lengths[:, None] - 1 - t, t)
        reversed_ = x.gather(1, turned[..., None].expand_as(x))
        ends = []
        for rnn, inputs in ((self.ahead, x), (self.behind, reversed_)):
            if self.naive:
                packed = pack_padded_sequence(inputs, lengths.cpu(), batch_first=True, enforce_sorted=False)
                ends.append(rnn(packed)[1][0])
            else:
                ends.append(rnn(inputs)[0][torch.arange(len(x), device=x.device), lengths - 1])
        return Gaussian(*self.to_latent(torch.cat(ends, 1)).float().chunk(2, -1))


class _Decoder(nn.Module):
    def __init__(self, rnn: Recurrent, latent: int, outputs: int, naive: bool) -> None:
        super().__init__()
        layer = rnn.forwards[0]
        assert isinstance(layer, nn.RNNBase)
        self.naive = naive
        size = layer.input_size + latent
        self.rnn = nn.GRUCell(size, rnn.hidden) if naive else nn.GRU(size, rnn.hidden, batch_first=True)
        self.to_state = nn.Linear(latent, rnn.hidden)
        self.add = nn.Linear(latent, rnn.hidden)
        self.to_output = nn.Linear(rnn.hidden, outputs)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.to_output(self.hidden(z, x))

    def hidden(self, z: Tensor, x: Tensor) -> Tensor:
        h = self.to_state(z).tanh()
        if self.naive:
            steps = []
            for t in range(x.shape[1]):
                h = self.rnn(torch.cat([x[:, t], z], 1), h)
                steps.append(h)
            outputs = torch.stack(steps, 1)
        else:
            outputs = self.rnn(torch.cat([x, z[:, None].expand(-1, x.shape[1], -1)], -1), h[None])[0]
        return outputs + self.add(z)[:, None]


def weights_of(model: MultimodalVAE, naive: bool = True) -> dict[str, Tensor]:
    """The weights of a `Plain` as functions of the model's, so that gradients can be compared: {name: tensor}."""
    found: dict[str, Tensor] = {}
    for name, inner in (("text", "write"), ("audio", "speak")):
        modality = model.modality(name)
        encoder, decoder = modality.encoder, modality.decoder
        assert isinstance(encoder, TokenEncoder | FrameEncoder)
        assert isinstance(decoder, TokenDecoder | FrameDecoder)
        for mine, theirs in (("ahead", encoder.rnn.forwards), ("behind", encoder.rnn.backwards)):
            found |= {f"{name}.{mine}.{key}": value for key, value in theirs[0].named_parameters()}
        found |= {f"{name}.to_latent.{key}": value for key, value in encoder.to_latent.named_parameters()}
        net = decoder.net
        cell = dict(net.rnn.forwards[0].named_parameters())
        # W (x + A z + a) + b  =  [W, W A] [x; z] + (b + W a)
        w, a = cell["weight_ih_l0"], net.to_input
        joined = torch.cat([w, w @ a.weight], 1), cell["weight_hh_l0"]
        biases = cell["bias_ih_l0"] + w @ a.bias, cell["bias_hh_l0"]
        suffix = "" if naive else "_l0"
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        found |= {f"{inner}.rnn.{key}{suffix}": v for key, v in zip(names, [*joined, *biases], strict=True)}
        found |= {f"{inner}.to_state.{key}": value for key, value in net.to_state.named_parameters()}
        found |= {f"{inner}.add.{key}": value for key, value in net.to_output.named_parameters()}
        last = decoder.to_logits if isinstance(decoder, TokenDecoder) else decoder.to_frames
        found |= {f"{inner}.to_output.{key}": value for key, value in last.named_parameters()}
        if isinstance(decoder, TokenDecoder):
            assert isinstance(encoder, TokenEncoder)
            found |= {"embedding.weight": encoder.embedding.weight, "previous.weight": decoder.embedding.weight}
        else:
            found |= {f"from_frame.{key}": value for key, value in decoder.from_block.named_parameters()}
            found |= {f"to_end.{key}": value for key, value in decoder.to_end.named_parameters()}
            found["start"] = decoder.start
            assert isinstance(decoder.likelihood, Normal)
            found["log_scale"] = decoder.likelihood.log_scale
    return found
