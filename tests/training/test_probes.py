"""Probes: logistic regression, its calibration on held-out folds, and refusals."""

import numpy as np
import pytest
from scipy.special import softmax

from kdbench.errors import UsageError
from kdbench.training.probes import best_temperature, fit_probe


def blobs(classes=3, each=12, spread=0.3, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    return np.eye(classes, 5)[labels] + spread * rng.normal(size=(len(labels), 5)), labels


@pytest.mark.parametrize("classes", [2, 3])
def test_separable_classes_are_told_apart(classes):
    features, labels = blobs(classes, spread=0.05)
    posteriors = fit_probe(features, labels, classes).posteriors(features)
    assert posteriors.sum(1) == pytest.approx(np.ones(len(labels)))
    assert (posteriors.argmax(1) == labels).all()


def test_a_shift_and_scale_of_the_features_change_nothing():
    features, labels = blobs()
    plain = fit_probe(features, labels, 3).posteriors(features)
    moved = fit_probe(100 * features - 7, labels, 3).posteriors(100 * features - 7)
    assert moved == pytest.approx(plain, abs=1e-3)


def test_the_temperature_is_the_one_that_made_the_labels():
    rng = np.random.default_rng(1)
    logits = 3 * rng.normal(size=(4000, 4))
    labels = np.array([rng.choice(4, p=p) for p in softmax(logits / 2.5, axis=1)])
    assert best_temperature(logits, labels) == pytest.approx(2.5, rel=0.1)


def test_calibration_lowers_the_loss_on_new_data_where_the_probe_is_too_sure():
    features, labels = blobs(each=6, spread=1.0)
    new, truth = blobs(each=200, spread=1.0, seed=2)

    def loss(calibrate):
        probe = fit_probe(features, labels, 3, strength=1e4, calibrate=calibrate)
        return -np.log(probe.posteriors(new)[np.arange(len(truth)), truth].clip(1e-300)).mean()

    assert loss(True) < loss(False)


def test_calibration_keeps_the_order_of_the_classes():
    features, labels = blobs(spread=1.0)
    plain, calibrated = (fit_probe(features, labels, 3, calibrate=c).posteriors(features) for c in (False, True))
    assert (plain.argmax(1) == calibrated.argmax(1)).all()


def test_classes_with_too_few_labels_are_refused():
    features, labels = blobs()
    with pytest.raises(UsageError, match="needs 2 label"):
        fit_probe(features[: 12 + 1], labels[: 12 + 1], 2)
    with pytest.raises(UsageError, match="needs 1 label"):
        fit_probe(features, labels, 4, calibrate=False)
    assert fit_probe(features[: 12 + 1], labels[: 12 + 1], 2, calibrate=False).posteriors(features).shape == (36, 2)
