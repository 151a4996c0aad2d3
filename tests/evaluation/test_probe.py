"""The linear probe: right where classes are apart, calibrated where they are not, and the same after it was saved."""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmseqvae.evaluation.probe import Probe, fit_probe, report
from mmseqvae.reporting.confusion_matrix import write_confusion


def clouds(n: int, apart: float, classes: str = "abc", seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """n points of N(m_k, I) in 4 dimensions of unlike scale and offset, the m_k `apart` along an axis each."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(classes), n)
    points = random.standard_normal((n, 4)) + apart * np.eye(4)[labels]
    return points * [1, 10, 0.1, 1] + [0, 5, 0, -3], [classes[k] for k in labels]


def test_far_clouds_are_told_apart() -> None:
    probe = fit_probe(*clouds(300, 8), *clouds(100, 8, seed=1))
    means, labels = clouds(200, 8, seed=2)
    figures = report(probe, means, labels)
    assert figures["accuracy"]["value"] == figures["macro_f1"] == 1
    assert figures["confusion"] == np.diag([labels.count(name) for name in "abc"]).tolist()
    assert figures["classes"] == ["a", "b", "c"]


def test_near_clouds_are_told_as_well_as_bayes_rule_does_and_as_surely() -> None:
    probe = fit_probe(*clouds(3000, 1.5), *clouds(1000, 1.5, seed=1))
    means, labels = clouds(4000, 1.5, seed=2)
    plain = (means - [0, 5, 0, -3]) / [1, 10, 0.1, 1]
    bayes = np.array(list("abc"))[plain[:, :3].argmax(1)]
    figures = report(probe, means, labels)
    assert figures["accuracy"]["value"] == pytest.approx((bayes == labels).mean(), abs=0.01)
    assert figures["calibration_error"] < 0.03
    confidence = probe.probabilities(means).max(1)
    assert confidence.mean() == pytest.approx(figures["accuracy"]["value"], abs=0.02)
    overconfident = Probe(probe.classes, probe.weight, probe.bias, probe.temperature / 5, probe.strength)
    assert report(overconfident, means, labels)["calibration_error"] > 0.1


def test_the_temperature_undoes_an_overfitted_probe() -> None:
    """Few items in many dimensions: the least regularised weights are too sure, the chosen ones are not."""
    random = np.random.default_rng(0)

    def noisy(n: int) -> tuple[np.ndarray, list[str]]:
        y = random.integers(0, 2, n)
        x = random.standard_normal((n, 30))
        x[:, 0] += 1.0 * y
        return x, [str(k) for k in y]

    probe = fit_probe(*noisy(60), *noisy(400))
    assert probe.strength < 1
    assert report(probe, *noisy(2000))["calibration_error"] < 0.08


@pytest.mark.parametrize("classes", ["ab", "abc"])
def test_the_temperature_is_that_of_scikit_learn(classes: str) -> None:
    """Two routes to one number, which scikit-learn has since 1.8."""
    pytest.importorskip("sklearn", minversion="1.8")
    (x, y), (valid_x, valid_y) = clouds(300, 1.5, classes), clouds(100, 1.5, classes, seed=1)
    probe = fit_probe(x, y, valid_x, valid_y, seed=5)
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=probe.strength, max_iter=2000)).fit(x, y)
    calibrate = np.random.default_rng(5).permutation(100)[1::2]
    calibrated = CalibratedClassifierCV(FrozenEstimator(plain), method="temperature")
    calibrated.fit(valid_x[calibrate], np.array(valid_y)[calibrate])
    assert abs(probe.temperature - 1) > 0.01  # there was something to find
    np.testing.assert_allclose(probe.probabilities(x), calibrated.predict_proba(x), atol=1e-3)


def test_a_class_may_be_missing_among_the_validation_items() -> None:
    """Where scikit-learn's calibration of a fitted classifier stops with an IndexError (1.9)."""
    means, labels = clouds(40, 8, seed=1)
    some = [i for i, label in enumerate(labels) if label != "b"]
    probe = fit_probe(*clouds(300, 8), means[some], [labels[i] for i in some])
    means, labels = clouds(200, 8, seed=2)
    assert report(probe, means, labels)["accuracy"]["value"] == 1


def test_two_classes_and_no_validation_split() -> None:
    means, labels = clouds(400, 6, "ab")
    probe = fit_probe(means, labels, seed=3)
    assert probe.weight.shape == (2, 4)
    assert report(probe, *clouds(100, 6, "ab", 1))["accuracy"]["value"] == 1
    np.testing.assert_allclose(probe.probabilities(means).sum(1), 1)
    assert probe.predict(means[:5]) == labels[:5]


def test_a_class_that_training_never_saw_is_wrong() -> None:
    probe = fit_probe(*clouds(300, 8), *clouds(100, 8, seed=1))
    means, labels = clouds(90, 8, seed=2)
    figures = report(probe, means, ["new", *labels[1:]])
    assert figures["accuracy"]["hits"] == 89
    assert figures["classes"] == ["a", "b", "c", "new"]
    assert sum(figures["confusion"][3]) == 1
    assert figures["macro_f1"] == pytest.approx(0.75, abs=0.02)


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    probe, (means, _) = fit_probe(*clouds(300, 2)), clouds(50, 2, seed=4)
    probe.save(tmp_path / "probe.json")
    again = Probe.load(tmp_path / "probe.json")
    np.testing.assert_array_equal(again.probabilities(means), probe.probabilities(means))
    assert again.classes == probe.classes
    with pytest.raises(ValueError, match=r"reads \[N, 4\], got \[50, 3\]"):
        again.probabilities(means[:, :3])
    state = json.loads((tmp_path / "probe.json").read_text())
    for damaged in ("nonsense", json.dumps({**state, "classes": ["a"]}), json.dumps({**state, "format_version": 9})):
        (tmp_path / "bad.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"bad\.json is no probe"):
            Probe.load(tmp_path / "bad.json")


def test_too_little_to_learn_from() -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        fit_probe(np.zeros((20, 2)), 20 * ["a"])
    with pytest.raises(ValueError, match="1 labelled items are left"):
        fit_probe(*clouds(50, 2), np.zeros((2, 4)), ["a", "never seen"])


def test_the_confusion_matrix_is_a_table_and_a_picture(tmp_path: Path) -> None:
    probe = fit_probe(*clouds(300, 8), *clouds(100, 8, seed=1))
    table, picture = write_confusion(report(probe, *clouds(60, 8, seed=2)), tmp_path)
    lines = table.read_text().splitlines()
    assert lines[0] == "true,a,b,c"
    assert sum(int(n) for line in lines[1:] for n in line.split(",")[1:]) == 60
    assert picture.read_bytes()[:4] == b"\x89PNG"
