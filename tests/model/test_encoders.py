import pytest
import torch
from torch import Tensor

from mmseqvae.encoders import POOLINGS, FrameEncoder, TokenEncoder
from mmseqvae.sequence import Sequence

LENGTHS = torch.tensor([5, 2, 0, 3])


def frames(steps: int = 6, channels: int = 2) -> Sequence:
    return Sequence(torch.randn(4, steps, channels, dtype=torch.float64), LENGTHS)


def pooled_by_hand(outputs: Tensor, lengths: Tensor, pooling: str, both: bool) -> Tensor:
    rows = []
    for row, n in zip(outputs, lengths.tolist(), strict=True):
        if n == 0:
            rows.append(torch.zeros_like(outputs[0, 0]))
        elif pooling == "mean":
            rows.append(row[:n].mean(0))
        elif pooling == "max":
            rows.append(row[:n].max(0).values)
        else:
            half = row.shape[-1] // 2 if both else row.shape[-1]
            rows.append(torch.cat([row[n - 1, :half], row[0, half:]]))
    return torch.stack(rows)


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_is_over_the_steps_that_exist(pooling: str, both: bool) -> None:
    encoder = FrameEncoder(2, 3, hidden=4, pooling=pooling, bidirectional=both).double()
    x = frames()
    pooled = pooled_by_hand(encoder.rnn(x.values, x.lengths), x.lengths, pooling, both)
    mean, logvar = encoder.to_latent(pooled).chunk(2, -1)
    expert = encoder(x)
    torch.testing.assert_close(expert.mean, mean)
    torch.testing.assert_close(expert.logvar, logvar)


def test_a_hole_in_frames_is_read_as_the_learnt_frame() -> None:
    encoder = FrameEncoder(2, 3, hidden=4).double()
    encoder.hole.data = torch.tensor([0.4, -0.7], dtype=torch.float64)
    x = frames()
    observed = torch.ones(4, 6, dtype=torch.bool)
    observed[0, 2] = False
    explicit = x.values.clone()
    explicit[0, 2] = encoder.hole.data
    with_hole = encoder(Sequence(x.values, x.lengths, observed))
    torch.testing.assert_close(with_hole.mean, encoder(Sequence(explicit, x.lengths)).mean)
    assert not torch.allclose(with_hole.mean[0], encoder(x).mean[0])
    with_hole.mean.sum().backward()
    assert encoder.hole.grad is not None
    assert encoder.hole.grad.abs().sum() > 0


def test_a_hole_in_tokens_is_none_of_the_tokens() -> None:
    encoder = TokenEncoder(3, 2, embedding=4, hidden=4).double()
    tokens, lengths = torch.tensor([[0, 1, 2]]), torch.tensor([3])
    observed = torch.tensor([[True, False, True]])
    hole = encoder(Sequence(tokens, lengths, observed))
    for other in range(3):
        tokens[0, 1] = other
        assert not torch.allclose(hole.mean, encoder(Sequence(tokens, lengths)).mean)
    hole.mean.sum().backward()
    gradient = encoder.embedding.weight.grad
    assert gradient is not None
    assert (gradient.abs().sum(1) > 0).tolist() == [True, False, True, True]


def test_reduction_stacks_frames_and_fills_the_last_block_with_the_hole() -> None:
    encoder = FrameEncoder(2, 3, hidden=4, reduction=3).double()
    encoder.hole.data = torch.tensor([0.4, -0.7], dtype=torch.float64)
    x = frames(steps=5)
    stacked = torch.zeros(4, 2, 6, dtype=torch.float64)
    for i, n in enumerate(LENGTHS.tolist()):
        for t in range(6):
            stacked[i, t // 3, 2 * (t % 3) : 2 * (t % 3) + 2] = x.values[i, t] if t < n else encoder.hole.data
    blocks = torch.tensor([2, 1, 0, 1])
    pooled = encoder.rnn.last(encoder.rnn(stacked, blocks), blocks)
    torch.testing.assert_close(encoder(x).mean, encoder.to_latent(pooled)[:, :3])


def test_order_and_every_step_matter() -> None:
    for encoder, x in (
        (TokenEncoder(9, 2).double(), Sequence(torch.tensor([[1, 2, 3, 4]]), torch.tensor([4]))),
        (FrameEncoder(2, 2).double(), Sequence(torch.randn(1, 4, 2).double(), torch.tensor([4]))),
    ):
        before = encoder(x).mean
        assert not torch.allclose(encoder(Sequence(x.values.flip(1), x.lengths)).mean, before)
        for t in range(4):
            changed = x.values.clone()
            changed[0, t] += 1
            assert not torch.allclose(encoder(Sequence(changed, x.lengths)).mean, before)


def test_dropout_acts_in_training_only() -> None:
    encoder, x = TokenEncoder(5, 2, dropout=0.5), Sequence(torch.tensor([[1, 2]]), torch.tensor([2]))
    assert not torch.equal(encoder(x).mean, encoder(x).mean)
    encoder.eval()
    assert torch.equal(encoder(x).mean, encoder(x).mean)


def test_normalised_means_keep_their_spread() -> None:
    """Whatever the encoder says, over the rows that are there; so the mean KL is at least D scale^2 / 2."""
    torch.manual_seed(0)
    encoder = TokenEncoder(9, 3, hidden=5, mean_scale=0.6).double()
    encoder.to_latent.weight.data *= 0.5  # a posterior that is about to collapse
    x = Sequence(torch.randint(9, (40, 6)), torch.arange(40) % 7)
    expert, here = encoder(x), x.present
    mean = expert.mean[here]
    torch.testing.assert_close(mean.mean(0), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(
        mean.var(0, correction=0), torch.full((3,), 0.36, dtype=torch.float64), rtol=0.02, atol=0
    )
    assert expert.kl()[here].sum(-1).mean() > 0.98 * 3 * 0.36 / 2
    encoder.normalised.shift.data += 1.0
    torch.testing.assert_close(encoder(x).mean[here], mean + 1)


def test_normalisation_runs_on_when_training_is_over() -> None:
    """Running averages approach those of the data; one row alone uses them even in training."""
    torch.manual_seed(0)
    encoder = TokenEncoder(9, 3, hidden=5, mean_scale=0.6).double()
    x = Sequence(torch.randint(9, (40, 6)), torch.full((40,), 6))
    for _ in range(200):
        inside = encoder(x).mean
    alone = encoder(x[:1]).mean
    encoder.eval()
    torch.testing.assert_close(encoder(x).mean, inside)
    torch.testing.assert_close(alone, inside[:1])


def test_bad_arguments_are_errors() -> None:
    with pytest.raises(ValueError, match="pooling must be one of last, mean, max, got 'sum'"):
        TokenEncoder(5, 2, pooling="sum")
    with pytest.raises(ValueError, match="kind must be one of"):
        FrameEncoder(5, 2, kind="transformer")
    with pytest.raises(ValueError, match="reduction must be at least 1, got 0"):
        FrameEncoder(5, 2, reduction=0)
    with pytest.raises(ValueError, match="scale must be above 0"):
        FrameEncoder(5, 2, mean_scale=-1.0)
