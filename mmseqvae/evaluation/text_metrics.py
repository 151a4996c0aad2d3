"""What tables of text VAEs hold: nats a sentence, perplexity, KL, mutual information, active units; sampled sentences.

The protocol of those tables (Kim et al. 2018; He et al. 2019; Li et al. 2019): importance-weighted nats a sentence, the
end counted and the start not, and exp of all nats over all tokens, ends included. Nats compare only between the same
data, vocabulary and unknown token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mmseqvae.data import Corpus, SequenceDataset
from mmseqvae.evaluation.language_model_baseline import LanguageModel, negative_log_likelihood
from mmseqvae.evaluation.summary import DRAWS, batches, share_to_dict, some_rows
from mmseqvae.inference.importance_sampling import effective_draws, log_mean_exp, mutual_information, scored_draws
from mmseqvae.metrics import active_units, copied, distinct
from mmseqvae.pipeline.dataset_posteriors import posteriors
from mmseqvae.pipeline.trained_model import Trained
from mmseqvae.priors.base import Prior, divergence


@torch.no_grad()
def text_metrics(
    trained: Trained, dataset: SequenceDataset, name: str = "text", draws: int = 500, seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Figures of the tokens `name` alone, as plain data: other modalities are not read, and their nats not counted.

    nll: importance-weighted -log p(x), nats an item, under the prior that the model was trained with (of `draws` draws
    from q(z | x), an upper bound), with its standard_error over the items; `fitted` the same under the prior fitted
    after training, None without. perplexity: exp of all these nats over all tokens. effective_draws: of `draws`.
    kl: KL(q(z | x) || prior) of the prior trained with. mutual_information: I(x; z) of `mutual_information_items`
    items, at most ln of their number. active_units of `dimensions`. Raises ValueError where no item has `name`.
    """
    model = trained.model.eval()
    lengths = dataset.lengths(name)
    if not lengths.any():
        raise ValueError(f"no item of the data set has {name}")
    generator = model.generator(seed)
    priors: dict[str, Prior] = {"trained": model.training_prior}
    if model.fitted is not None:
        priors["fitted"] = model.fitted
    nats: dict[str, list[Tensor]] = {prior: [] for prior in priors}
    effective: list[Tensor] = []
    kls: list[Tensor] = []
    for batch in batches(model, dataset, "likelihood of text" if progress else None):
        batch = {name: batch[name][batch[name].present]}
        if not len(batch[name]):
            continue
        q = model.posterior(batch)
        weights: dict[str, list[Tensor]] = {prior: [] for prior in priors}
        for z, scores in scored_draws(model, q, batch, [name], draws, generator):
            for key, prior in priors.items():
                weights[key].append(scores[name] + prior.log_prob(z) - q.log_prob(z))
        for key, pieces in weights.items():
            nats[key].append(-log_mean_exp(torch.cat(pieces)).double())
        effective.append(effective_draws(torch.cat(weights["trained"])))
        apart = divergence(q, model.training_prior, q.rsample(DRAWS, generator))
        kls.append(apart.expand(len(q.mean)))

    each = torch.cat(nats["trained"])
    q = posteriors(model, dataset, [name])
    here = torch.from_numpy(lengths > 0)
    some, means = some_rows(here, seed), q.mean[here.to(model.device)]
    return {
        "items": len(each),
        "tokens_an_item": float(lengths.sum() / len(each)),
        "draws": draws,
        "prior": str(model.training_prior),
        "nll": float(each.mean()),
        "standard_error": float(each.std() / math.sqrt(len(each))) if len(each) > 1 else None,
        "perplexity": math.exp(float(each.sum()) / float(lengths.sum())),
        "effective_draws": float(torch.cat(effective).mean()),
        "fitted": float(torch.cat(nats["fitted"]).mean()) if "fitted" in nats else None,
        "kl": float(torch.cat(kls).double().mean()),
        "mutual_information": mutual_information(q[some.to(model.device)], generator),
        "mutual_information_items": len(some),
        "active_units": active_units(means) if len(means) > 1 else None,
        "dimensions": model.latent,
    }


def beside_language_model(
    trained: Trained,
    model: LanguageModel,
    corpus: Corpus,
    splits: Iterable[str],
    draws: int = 500,
    name: str = "text",
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """{split: {"vae": `text_metrics`, "language_model": nll and perplexity, "ratio": of their nats}}, as plain data.

    model: fitted to the same tokens, see `fit_language_model`. decoder_parameters: of what writes the text in the VAE,
    and parameters: of the language model.
    """
    decoder = trained.model.modality(name).decoder
    assert decoder is not None
    found = {}
    for split in splits:
        dataset = corpus.datasets[split]
        vae = text_metrics(trained, dataset, name, draws, seed, progress)
        nats = negative_log_likelihood(model, dataset, name)
        alone = {
            "nll": float(nats.mean()),
            "perplexity": math.exp(float(nats.sum()) / float(dataset.lengths(name).sum())),
            "parameters": _size(model),
        }
        vae["decoder_parameters"] = _size(decoder)
        found[split] = {"vae": vae, "language_model": alone, "ratio": vae["nll"] / alone["nll"]}
    return found


def sample_figures(
    sampled: Iterable[str],
    real: Iterable[str],
    training: Iterable[str],
    encode: Callable[[str], Iterable[int]],
    perplexity: Callable[[list[list[int]]], float],
) -> dict[str, Any]:
    """Sampled texts beside as many held-out ones, as plain data: perplexity under a model of another kind, distinct-2.

    encode: a text -> its tokens, the end included; perplexity: of such sequences. copied_from_training,
    real_in_training: shares of both that training holds, token by token. Raises ValueError where the two differ in
    number, on which distinct-2 depends.
    """
    sampled, real = list(sampled), list(real)
    if len(sampled) != len(real):
        raise ValueError(f"compare as many sampled texts as real ones, got {len(sampled)} and {len(real)}")
    tokens = {key: [list(encode(text)) for text in texts] for key, texts in (("sampled", sampled), ("real", real))}
    found: dict[str, Any] = {"texts": len(sampled)}
    for key, sequences in tokens.items():
        found[f"perplexity_{key}"] = perplexity(sequences)
        found[f"distinct_2_{key}"] = distinct(sequences, 2)
        found[f"tokens_{key}"] = sum(map(len, sequences)) / len(sequences)
    known = {tuple(encode(text)) for text in training}
    found["copied_from_training"] = share_to_dict(copied(map(tuple, tokens["sampled"]), known))
    found["real_in_training"] = share_to_dict(copied(map(tuple, tokens["real"]), known))
    return found


def _size(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())
