"""A GPU computes what a CPU computes, waits for nothing in a step, and draws by graphs what it draws step by step."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmseqvae.config import ModelConfig, TrainingConfig
from mmseqvae.decoders import FrameDecoder, TokenDecoder
from mmseqvae.decoding import FrameSampling, TokenSampling
from mmseqvae.distributions.likelihoods import Laplace, Normal
from mmseqvae.model import MultimodalVAE
from mmseqvae.objectives import OBJECTIVES
from mmseqvae.pipeline.build import frame_modality, token_modality
from mmseqvae.priors.mixtures import LearntMixture
from mmseqvae.rnn import autoregressive
from mmseqvae.rnn.kernels import cuda_graphs
from mmseqvae.rnn.layer import CELLS
from mmseqvae.sequence import Sequence
from mmseqvae.training.trainer import fit
from tests.two_processes import make, read

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")

V, C, B, T = 7, 3, 5, 12
CONFIG = ModelConfig(
    latent=4, reduction=2, layers=2, token_embedding=6, token_encoder=8, token_decoder=8, frame_encoder=8,
    frame_inputs=6, frame_decoder=8, input_dropout=0.0, input_noise=0.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def model_of(config: ModelConfig = CONFIG) -> MultimodalVAE:
    model = MultimodalVAE(
        {"text": token_modality(V, 0, T, config), "audio": frame_modality(C, T, config)}, prior=LearntMixture(3, 4)
    )
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def batch_of(missing: bool) -> dict[str, Sequence]:
    text = Sequence(torch.randint(V, (B, 6)), torch.tensor([6, 0 if missing else 1, 3, 4, 5]))
    observed = torch.rand(B, T) > 0.2 if missing else None
    return {
        "text": text,
        "audio": Sequence(torch.randn(B, T, C), torch.tensor([12, 9, 0 if missing else 2, 7, 1]), observed),
    }


def to_gpu(batch: dict[str, Sequence]) -> dict[str, Sequence]:
    return {view: x.to("cuda") for view, x in batch.items()}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("kind", CELLS)
def test_posteriors_likelihoods_and_gradients_are_those_of_a_cpu(kind: str, missing: bool) -> None:
    model = model_of(replace(CONFIG, cell=kind))
    twin, batch, z = copy.deepcopy(model).cuda(), batch_of(missing), torch.randn(3, B, 4)

    def total(model: MultimodalVAE, batch: dict[str, Sequence], z: Tensor) -> Tensor:
        encoded = model.encode(batch)
        experts = [encoded.expert(name) for name in encoded.names]
        where = [encoded.here(name)[:, None] for name in encoded.names]
        read = sum(((e.mean.sin() + e.logvar.cos()) * there).sum() for e, there in zip(experts, where, strict=True))
        return read + sum(score.sum() for score in model.log_likelihood(z, batch).values())

    expected, found = total(model, batch, z), total(twin, to_gpu(batch), z.cuda())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-4)
    expected.backward()
    found.backward()
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        if a.grad is not None:
            assert b.grad is not None, name
            assert (b.grad.cpu() - a.grad).norm() <= 1e-4 * a.grad.norm() + 1e-5, name


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_waits_for_nothing(name: str) -> None:
    """From a batch on the GPU to the gradients."""
    model = model_of().cuda()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    batches = [to_gpu(batch_of(missing=False)) for _ in range(3)]
    options = {"draws": 2} if name in ("importance", "mmvae_plus") else {}
    for step, batch in enumerate(batches):
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step may copy what is constant
        try:
            (-OBJECTIVES[name](model, batch, **options).objective.mean()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("rows", [1, 5])
def test_graphs_draw_what_single_steps_draw(kind: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoregressive, "AHEAD", cuda_graphs.CHUNK)  # so that noise is drawn for as many blocks at once
    words = TokenDecoder(V, 4, end=0, max_steps=40, embedding=6, hidden=8, kind=kind, layers=2, never_first=(0,))
    sounds = FrameDecoder(Normal(C), 4, max_steps=95, reduction=2, hidden=8, inputs=6, kind=kind)
    spread = FrameDecoder(Laplace(C, "predicted"), 4, max_steps=20, hidden=8, inputs=6, kind=kind)
    ways = [(words, TokenSampling()), (words, TokenSampling(0.8, 5, 0.9)), (sounds, FrameSampling(1.0, "draw"))]
    for decoder, how in [*ways, (spread, FrameSampling())]:
        decoder.cuda().eval()
        z = torch.randn(rows, 4, device="cuda")

        def draw(decoder=decoder, how=how, z=z) -> Sequence:  # type: ignore[no-untyped-def]
            return decoder.sample(z, how, torch.Generator("cuda").manual_seed(1))

        graph = [draw(), draw()]
        with monkeypatch.context() as patch:
            patch.setattr(cuda_graphs, "fits", lambda z: False)
            single = draw()
        for found in graph:
            assert torch.equal(found.lengths, single.lengths)
            torch.testing.assert_close(found.filled(), single.filled(), rtol=1e-4, atol=1e-5)


def test_graphs_follow_weights_that_change() -> None:
    decoder = TokenDecoder(V, 4, end=0, max_steps=20, embedding=6, hidden=8).cuda().eval()
    z = torch.randn(4, 4, device="cuda")
    before = decoder.sample(z, TokenSampling())
    with torch.no_grad():
        decoder.to_logits.bias.copy_(torch.tensor([-9.0, 0, 0, 9, 0, 0, 0]))
    after = decoder.sample(z, TokenSampling())
    assert bool((after.values[:, :-1] == 3).all())
    decoder.to_logits.bias = torch.nn.Parameter(torch.tensor([-9.0, 0, 0, 0, 9, 0, 0], device="cuda"))
    assert bool((decoder.sample(z, TokenSampling()).values[:, :-1] == 4).all())
    assert before.values.shape[1] <= 20


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_training_from_files_to_draws(precision: str, tmp_path: Path) -> None:
    make(tmp_path, 40, 8)
    small = ModelConfig(
        latent=4, token_embedding=8, token_encoder=8, token_decoder=16, frame_encoder=8, frame_decoder=16
    )
    settings = TrainingConfig(
        epochs=30, batch_size=8, warm_up=2, fitted_components=3, learning_rate=1e-2, precision=precision
    )
    trained = fit(read(tmp_path), tmp_path / "run", model=small, training=settings, progress=False)
    trained.model.cuda()
    drawn = [trained.generate(text=word, want="move", samples=8, seed=0)["move"] for word in ("low", "high")]
    low, high = (float(np.mean([np.asarray(x).mean() for x in moves])) for moves in drawn)
    assert low + 2 < high
