import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mmseqvae.features.arrays import FrameArrays, FramesError, Standard, channels_of


def clips(count: int = 5, channels: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal([1e3, -2, 0], [1e-1, 3, 10], (n + 1, channels)) for n in range(count)]


def test_fit_in_one_pass_equals_the_statistics_of_all_frames() -> None:
    standard = Standard.fit([*clips(), np.zeros((0, 3))])
    frames = np.concatenate(clips())
    np.testing.assert_allclose(standard.mean, frames.mean(0), rtol=1e-6)
    np.testing.assert_allclose(standard.std, frames.std(0), rtol=1e-6)


def test_standardising_is_undone_and_its_jacobian_is_that_of_the_density() -> None:
    standard = Standard.fit(clips())
    frames = torch.from_numpy(np.concatenate(clips())).float()
    z = standard.apply(frames)
    torch.testing.assert_close(standard.undo(z), frames)
    # log p(x) under N(mean, std) against log p(z) under N(0, 1) plus log_jacobian, in float64 up to the rounding of z
    raw = torch.distributions.Normal(standard.mean, standard.std).log_prob(frames).sum(1)
    unit = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(raw, unit + standard.log_jacobian, rtol=1e-4, atol=1e-4)


def test_a_constant_channel_stays_finite_and_counts_nothing() -> None:
    varied, constant = Standard.fit([np.c_[[1.0, 5.0]]]), Standard.fit([np.c_[[1.0, 5.0], [7.1, 7.1]]])
    assert constant.std[1] == 1
    assert constant.log_jacobian == varied.log_jacobian == -math.log(2)


def test_no_frames_and_no_fit_are_told() -> None:
    with pytest.raises(ValueError, match="no frames"):
        Standard.fit([np.zeros((0, 3))])
    with pytest.raises(RuntimeError, match="not fitted"):
        FrameArrays(3).encode(np.zeros((2, 3)))


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f8", "i4", "u1", "?"])
def test_any_real_number_type_is_read_alike_from_file_and_memory(tmp_path: Path, dtype: str) -> None:
    array = np.array([[0, 1], [1, 1], [1, 0]]).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    assert channels_of(tmp_path / "a.npy") == 2
    front_end = FrameArrays(2)
    from_file, from_memory = front_end.read(tmp_path / "a.npy"), front_end.read(array)
    assert from_file.dtype == torch.float32
    assert from_file.tolist() == from_memory.tolist() == [[0, 1], [1, 1], [1, 0]]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(3), r"shape \(3,\)"),
        (np.zeros((0, 2)), "no frames"),
        (np.zeros((4, 3)), "has 3 channels, the others have 2"),
        (np.array([[0, 1], [0, np.nan]]), "frame 1 holds a NaN"),
        (np.full((3, 2), np.nan), "nothing but NaN; leave the cell empty"),
        (np.array([[1e300, 1]]), "frame 0 holds a NaN or infinity in float32"),
        (np.zeros((1, 2), complex), "complex128"),
        (np.array([["a", "b"]]), "real numbers"),
        (np.array([[{}, {}]]), "not a whole .npy file of numbers"),
    ],
)
def test_unusable_arrays_name_file_and_reason(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    with pytest.raises(FramesError, match=message) as error:
        FrameArrays(2).read(tmp_path / "bad.npy")
    assert str(tmp_path / "bad.npy") in str(error.value)


def test_holes_are_read_kept_and_not_standardised_by() -> None:
    """A frame that is NaN in all channels; mean and deviation are those of the others."""
    whole = np.random.default_rng(0).normal(5, 2, (50, 2)).astype(np.float32)
    holed = np.insert(whole, [0, 20, 50], np.nan, 0)
    one, other = FrameArrays(2), FrameArrays(2)
    one.fit([whole])
    other.fit([holed, np.full((3, 2), np.nan)])
    torch.testing.assert_close(other.fitted.mean, one.fitted.mean)
    torch.testing.assert_close(other.fitted.std, one.fitted.std)
    frames = other.encode(holed)
    assert frames.isnan().all(1).nonzero().flatten().tolist() == [0, 21, 52]
    torch.testing.assert_close(frames[~frames.isnan().any(1)], one.encode(whole))


def test_frames_of_0_and_1_stay_as_they_are() -> None:
    roll = np.random.default_rng(0).integers(0, 2, (40, 3))
    front_end = FrameArrays(3)
    front_end.fit([roll[:20], np.insert(roll[20:].astype(float), 4, np.nan, 0)])
    assert front_end.binary
    assert torch.equal(front_end.encode(roll), torch.from_numpy(roll).float())
    assert front_end.log_jacobian == 0
    assert FrameArrays.from_dict(front_end.to_dict()).binary
    front_end.fit([roll, 2 * roll])
    assert not front_end.binary


def test_missing_truncated_and_foreign_files(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((100, 2)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])
    (tmp_path / "text.npy").write_text("hello")
    np.savez(tmp_path / "z", a=np.zeros((2, 2)))
    for name, message in [("none.npy", "missing"), ("cut.npy", "whole"), ("text.npy", "whole"), ("z.npz", "archive")]:
        with pytest.raises(FramesError, match=message):
            FrameArrays(2).read(tmp_path / name)
        assert channels_of(tmp_path / name) is None


def test_state_is_json_and_gives_the_same_steps() -> None:
    front_end = FrameArrays(3)
    assert FrameArrays.from_dict(front_end.to_dict()).standard is None
    front_end.fit(clips())
    restored = FrameArrays.from_dict(json.loads(json.dumps(front_end.to_dict())))
    assert torch.equal(restored.encode(clips()[3]), front_end.encode(clips()[3]))
    assert restored.log_jacobian == front_end.log_jacobian
    np.testing.assert_allclose(restored.decode(restored.encode(clips()[3])), clips()[3], rtol=1e-6, atol=1e-5)
