"""A language model without a latent, of the same parts as a text VAE: what its likelihood has to be compared with.

    model, reached = fit_language_model(corpus, "text", config, training)
    nats = negative_log_likelihood(model, corpus.datasets["test"], "text")  # an item, [N]

A VAE of text that is worse than the same decoder without a latent has bought its latent with likelihood; one whose
latent says nothing *is* that decoder (Bowman et al. 2016, section 5.1). So both numbers stand beside each other.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from mmseqvae.config import ModelConfig, TrainingConfig
from mmseqvae.data import Corpus, SequenceDataset, make_loader
from mmseqvae.decoders import TokenDecoder
from mmseqvae.decoding import TokenSampling
from mmseqvae.sequence import Sequence
from mmseqvae.tokenizers.characters import Tokenizer
from mmseqvae.training.schedules import warm_up_then_cosine
from mmseqvae.training.threads import threads_restored, use_threads


class LanguageModel(nn.Module):
    """p(x) of token sequences: a `TokenDecoder` whose latent has no dimensions. Arguments are those of TokenDecoder.

    What is left of the latent's three ways into the decoder are their biases, of which one is a learnt first state.
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        end: int,
        max_steps: int,
        embedding: int = 64,
        hidden: int = 64,
        kind: str = "gru",
        layers: int = 1,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            self.decoder = TokenDecoder(
                vocabulary, 0, end=end, max_steps=max_steps, embedding=embedding, hidden=hidden, kind=kind,
                layers=layers, dropout=dropout, input_dropout=input_dropout,
            )  # fmt: skip

    def log_prob(self, x: Sequence) -> Tensor:
        """log p(x) in nats an item, [B]; 0 where it is missing. The end counts, the start does not."""
        return x.sum_steps(self.decoder.log_prob(self._nothing(len(x)), x))

    def sample(self, n: int, how: TokenSampling, generator: torch.Generator | None = None) -> Sequence:
        """n sequences that end in `end`."""
        return self.decoder.sample(self._nothing(n), how, generator)

    def _nothing(self, rows: int) -> Tensor:
        return self.decoder.to_logits.weight.new_zeros(rows, 0)


def build_language_model(corpus: Corpus, name: str, config: ModelConfig) -> LanguageModel:
    """An untrained one for the tokens `name`, of the sizes of `config`. Raises ValueError where it has no tokens."""
    tokenizer = corpus.front_ends.get(name)
    if not isinstance(tokenizer, Tokenizer):
        raise ValueError(f"a language model needs a modality of tokens, which {name} is not")
    part = config.of("tokens", name)
    longest = max(int(dataset.lengths(name).max()) for dataset in corpus.datasets.values() if len(dataset))
    return LanguageModel(
        tokenizer.vocabulary_size, end=tokenizer.end_id, max_steps=int(config.max_steps_factor * longest) + 1,
        embedding=part["embedding"], hidden=part["decoder_hidden"], kind=part["cell"], layers=part["layers"],
        dropout=part["dropout"], input_dropout=part["input_dropout"],
    )  # fmt: skip


@threads_restored()
def fit_language_model(
    corpus: Corpus, name: str, config: ModelConfig, training: TrainingConfig, progress: bool = True
) -> tuple[LanguageModel, dict[str, Any]]:
    """The language model of the tokens `name` that is best on the split valid, and what it took.

    config: token_embedding, token_decoder, cell, layers, dropout, input_dropout and max_steps_factor, as VAEs have
    them, or what `modalities` says of this one. training: epochs, batch_size, learning_rate, warm_up, gradient_clip,
    ema_decay, patience, seed and threads, as `fit` uses them; the weights that are kept, averaged where `ema_decay` is
    set, are those of the epoch with the least nats on valid. Returns the model and {"epochs": run, "best_epoch",
    "valid_nll"}. Raises ValueError where the modality is not of tokens, or train or valid have nothing of it.
    """
    torch.manual_seed(training.seed)
    model = build_language_model(corpus, name, config)
    for split in ("train", "valid"):
        if not corpus.datasets[split].lengths(name).any():
            raise ValueError(f"a language model of {name} is fitted to train and stopped by valid; {split} has none")
    train, valid = corpus.datasets["train"], corpus.datasets["valid"]
    use_threads(training.threads)
    loader = make_loader(train, training.batch_size, seed=training.seed)
    steps = training.epochs * len(loader)
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warm_up_then_cosine(step, training.warm_up, steps)
    )
    decay = min(training.ema_decay, max(0.0, 1 - 10 / steps))
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
    best, best_epoch, kept = math.inf, 0, model
    epoch = 0
    bar = tqdm(total=steps, desc="language model", unit="step", disable=not progress, mininterval=0.5)
    for epoch in range(1, training.epochs + 1):
        model.train()
        for batch in loader:
            loss = -model.log_prob(batch[name]).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clip)
            optimizer.step()
            schedule.step()
            if averaged is not None:
                averaged.update_parameters(model)
            bar.update()
        judged = model if averaged is None else averaged.module
        assert isinstance(judged, LanguageModel)
        nll = float(negative_log_likelihood(judged, valid, name).mean())
        bar.set_postfix({"epoch": str(epoch), "valid": f"{nll:.2f}"}, refresh=False)
        if nll < best:
            best, best_epoch, kept = nll, epoch, copy.deepcopy(judged)
        elif training.patience is not None and epoch - best_epoch >= training.patience:
            break
    bar.close()
    return kept.eval(), {"epochs": epoch, "best_epoch": best_epoch, "valid_nll": best}


@torch.no_grad()
def negative_log_likelihood(model: LanguageModel, dataset: SequenceDataset, name: str) -> Tensor:
    """-log p(x) in nats of every item that has `name`, [N] in the data set's order. The model is left in eval mode."""
    model.eval()
    pieces = [-model.log_prob(x)[x.present] for x in _sequences(dataset, name)]
    return torch.cat(pieces).double()


def _sequences(dataset: SequenceDataset, name: str) -> Iterator[Sequence]:
    for batch in make_loader(dataset, 256, shuffle=False):
        yield batch[name]
