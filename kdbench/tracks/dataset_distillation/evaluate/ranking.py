"""Scores that do not credit images for what labels, augmentation or long training do: those of DD-Ranking (2025)."""

from __future__ import annotations

import math


def _normalised(a: float) -> float:
    """(e^a - e^-1) / (e - e^-1): 0 at -1, 1 at 1."""
    return (math.exp(a) - math.exp(-1)) / (math.e - math.exp(-1))


def label_robust_score(whole: float, hard: float, accuracy: float, control: float, w: float = 0.5) -> float:
    """LRS in [0, 1] of accuracies in [0, 1].

    a = w IOR - (1 - w) HLR with HLR = ``whole`` - ``hard`` (hard labels: the whole real set over the distilled one) and
    IOR = ``accuracy`` - ``control`` (the distilled set over a random real subset, both with the method's own labels).
    """
    return _normalised(w * (accuracy - control) - (1 - w) * (whole - hard))


def augmentation_robust_score(
    accuracy: float, control: float, accuracy_plain: float, control_plain: float, g: float = 0.5
) -> float:
    """ARS in [0, 1]: g times the gain over a random subset with augmentation, 1 - g times that without, normalised."""
    return _normalised(g * (accuracy - control) + (1 - g) * (accuracy_plain - control_plain))
