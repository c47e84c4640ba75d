"""Linear probes: what a frozen network's features say about labels that it was not trained for."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from kdbench.errors import UsageError

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

FOLDS = 5
"""Folds of the calibration at most; classes with fewer labels have one fold per label."""


@dataclass
class Probe:
    """Multinomial logistic regression on standardised features, its logits divided by a temperature."""

    mean: Array
    """(D,) of the features it was fitted on."""
    scale: Array
    """(D,) standard deviations, 1 for constant features."""
    weight: Array
    """(D, C)."""
    bias: Array
    """(C,)."""
    temperature: float = 1.0

    def logits(self, features: Array) -> Array:
        """(N, D) to (N, C), calibrated."""
        standard = (features - self.mean) / self.scale
        return (standard @ self.weight + self.bias) / self.temperature

    def posteriors(self, features: Array) -> Array:
        """(N, D) to probabilities (N, C)."""
        made: Array = softmax(self.logits(features), axis=1)
        return made


def _fit(features: Array, labels: Labels, classes: int, strength: float) -> Probe:
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    model = LogisticRegression(C=strength, max_iter=200, tol=1e-3)
    with warnings.catch_warnings():  # many classes with two labels each are no regression problem here
        warnings.filterwarnings("ignore", message="The number of unique classes", category=UserWarning)
        model.fit((features - mean) / scale, labels)
    if classes > 2:
        return Probe(mean, scale, model.coef_.T, model.intercept_)
    zero = np.zeros((features.shape[1], 1))  # of two classes scikit-learn keeps the difference alone
    return Probe(mean, scale, np.hstack([zero, model.coef_.T]), np.append(0.0, model.intercept_))


def best_temperature(logits: Array, labels: Labels) -> float:
    """Temperature between 0.05 and 20 with the smallest mean negative log-likelihood of labels (N,) (Guo et al. 2017).

    ``logits`` (N, C) of samples that the model was not fitted on.
    """

    def loss(log_temperature: float) -> float:
        log_probs = log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(log_probs[np.arange(len(labels)), labels].mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))


def fit_probe(
    features: Array, labels: Labels, classes: int, *, strength: float = 1.0, calibrate: bool = True, seed: int = 0
) -> Probe:
    """A probe fitted on features (N, D) and labels (N,) in [0, classes).

    ``strength`` is the inverse weight of the squared norm of the weights. With ``calibrate`` the temperature is the
    best one for the out-of-fold logits of a stratified cross-validation, whose folds come from ``seed``: no sample
    judges a probe that it was fitted on. Raises ``UsageError`` where a class has no sample, or just one where a
    temperature is asked for.
    """
    features = features.astype(np.float64)
    fewest = int(np.bincount(labels, minlength=classes).min())
    if fewest < 1 + calibrate:
        raise UsageError(
            f"a probe needs {1 + calibrate} label(s) of each class, but there is a class with {fewest}",
            hint="more labels per class, or no calibration",
        )
    probe = _fit(features, labels, classes, strength)
    if calibrate:
        folds = StratifiedKFold(min(FOLDS, fewest), shuffle=True, random_state=seed % 2**32)
        held_out = np.empty((len(labels), classes))
        for rest, part in folds.split(features, labels):
            held_out[part] = _fit(features[rest], labels[rest], classes, strength).logits(features[part])
        probe.temperature = best_temperature(held_out, labels)
    return probe
