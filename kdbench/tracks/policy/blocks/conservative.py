"""Optimism, pessimism and mixtures of policies for the exploration of an unknown process under a threshold.

Times are h = 0 .. H - 1. Of a process are known its sizes, its rewards and its first state; transitions are counted.
With n(s, a) visits, P^ the share of each next state (uniform where n = 0), L = log(S A H K / delta) and a bonus b:

    Q_up(h, s, a)  = min(H - h, r + P^ V_up(h + 1) + b)       V_up(h, s)  = max_a Q_up
    Q_low(h, s, a) = max(0,     r + P^ V_low(h + 1) - b)      V_low(h, s) = sum_a pi(a | h, s) Q_low

Two bonuses: ``range``, b = (H - 1 - h) (c1 / H sqrt(L / n) + c2 L / n), and ``variance``,
b = c1 sqrt(Var_P^(V_up(h + 1)) L / n) + c2 H^2 L / n, the form of the analysis. n is at least 1 in both. What follows
the last action is worth nothing, so the bonus ``range`` is 0 there.

The value of a policy is linear in its probabilities at any one time, and so is V_low, because the clip acts before the
mean over actions. Hence a policy that mixes two others which differ at one time alone has exactly the mixed value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from kdbench.tracks.policy.policies.tabular import Exploration

Bonus = Literal["range", "variance"]


@dataclass(frozen=True)
class Confidence:
    """How wide the bounds are."""

    c1: float
    c2: float
    delta: float = 0.05
    bonus: Bonus = "range"


@dataclass(frozen=True)
class Optimistic:
    """The upper bound and its policy."""

    V: np.ndarray
    """(H + 1, S)."""
    policy: np.ndarray
    """(H, S, A), one action a row."""
    bonus: np.ndarray
    """(H, S, A) b, which the lower bound takes too."""


class Model:
    """Counts of one process."""

    def __init__(
        self, reward: np.ndarray, start: np.ndarray, horizon: int, episodes: int, confidence: Confidence
    ) -> None:
        """``reward`` (S, A) in [0, 1], ``start`` (S,) probabilities, ``episodes`` K in all."""
        self.reward, self.start, self.horizon, self.confidence = reward, start, horizon, confidence
        S, A = reward.shape
        self.counts = np.zeros((S, A, S))
        self.L = float(np.log(S * A * horizon * episodes / confidence.delta))

    def update(self, states: np.ndarray, actions: np.ndarray, next_states: np.ndarray) -> None:
        """Count transitions, arrays of any one shape."""
        np.add.at(self.counts, (states, actions, next_states), 1.0)

    @property
    def visits(self) -> np.ndarray:
        """(S, A)."""
        return np.asarray(self.counts.sum(-1))

    @property
    def P(self) -> np.ndarray:
        """(S, A, S): shares of next states; uniform where nothing was seen."""
        n = self.visits[..., None]
        return np.where(n > 0, self.counts / np.maximum(n, 1), 1 / len(self.start))

    def optimistic(self) -> Optimistic:
        """Backward induction with the bonus added; ties go to the first action."""
        H, (S, A), sure = self.horizon, self.reward.shape, self.confidence
        P, n = self.P, np.maximum(self.visits, 1)
        rate = self.L / n
        V, policy, bonus = np.zeros((H + 1, S)), np.zeros((H, S, A)), np.zeros((H, S, A))
        eye, width = np.eye(A), sure.c1 / H * np.sqrt(rate) + sure.c2 * rate
        for h in reversed(range(H)):
            mean = P @ V[h + 1]
            if sure.bonus == "range":
                bonus[h] = (H - 1 - h) * width
            else:
                spread = np.maximum(P @ V[h + 1] ** 2 - mean**2, 0)
                bonus[h] = sure.c1 * np.sqrt(spread * rate) + sure.c2 * H**2 * rate
            Q = np.minimum(H - h, self.reward + mean + bonus[h])
            policy[h] = eye[Q.argmax(-1)]
            V[h] = Q.max(-1)
        return Optimistic(V, policy, bonus)

    def pessimistic(self, policies: np.ndarray, bonus: np.ndarray) -> np.ndarray:
        """(C,) lower bounds V_low of policies (C, H, S, A) from the first state, with the bonus (H, S, A)."""
        S, A = self.reward.shape
        P, V = self.P.reshape(S * A, S), np.zeros((len(policies), S))
        for h in reversed(range(self.horizon)):
            Q = self.reward + (V @ P.T).reshape(-1, S, A) - bonus[h]
            V = (policies[:, h] * np.maximum(Q, 0)).sum(-1)
        return np.asarray(V @ self.start)

    def cautious(self) -> np.ndarray:
        """(H, S, A) policy that is greedy in the lower bound: a baseline from data alone."""
        H, (S, A) = self.horizon, self.reward.shape
        bonus, P, V, policy = self.optimistic().bonus, self.P, np.zeros(S), np.zeros((H, S, A))
        for h in reversed(range(H)):
            Q = np.maximum(self.reward + P @ V - bonus[h], 0)
            policy[h], V = np.eye(A)[Q.argmax(-1)], Q.max(-1)
        return policy


# --- policies between the baseline and the optimistic one -------------------------------------------------------------


def candidates(baseline: np.ndarray, optimistic: np.ndarray) -> np.ndarray:
    """(H + 1, H, S, A): number j follows the baseline at the first j times and the optimistic policy from then on."""
    H = len(baseline)
    early = np.arange(H)[None] < np.arange(H + 1)[:, None]
    return np.where(early[..., None, None], baseline[None], optimistic[None])


def step_mixture(baseline: np.ndarray, optimistic: np.ndarray, j: int, rho: float) -> np.ndarray:
    """(H, S, A) between candidates j and j - 1, j from 1 to H: they differ at time j - 1, where
    (1 - rho) baseline + rho optimistic is played. rho = 0 is candidate j, rho = 1 candidate j - 1."""
    if not 1 <= j <= len(baseline) or not 0 <= rho <= 1:
        raise ValueError(f"a step mixture has 1 <= j <= {len(baseline)} and 0 <= rho <= 1, not j = {j}, rho = {rho}")
    mixed = candidates(baseline, optimistic)[j].copy()
    mixed[j - 1] = (1 - rho) * baseline[j - 1] + rho * optimistic[j - 1]
    return mixed


def share(safe: float, bold: float, threshold: float) -> float:
    """rho with (1 - rho) safe + rho bold = threshold, for safe >= threshold > bold."""
    return float(np.clip((safe - threshold) / (safe - bold), 0, 1))


@dataclass(frozen=True)
class Choice:
    """What is played in one episode."""

    policies: tuple[np.ndarray, ...]
    """One, or two that a coin decides between."""
    weights: tuple[float, ...]
    kind: Literal["optimistic", "mixed", "baseline"]


def choose_step(model: Model, baseline: np.ndarray, threshold: float) -> Choice:
    """StepMix: the optimistic policy where its lower bound reaches the threshold, the baseline where its own does not,
    else the step mixture whose lower bound equals the threshold, with as early an optimistic part as there is."""
    bold = model.optimistic()
    tables = candidates(baseline, bold.policy)
    low = model.pessimistic(tables, bold.bonus)
    if low[0] >= threshold:
        return Choice((bold.policy,), (1.0,), "optimistic")
    if low[-1] < threshold:
        return Choice((baseline,), (1.0,), "baseline")
    j = int(np.flatnonzero((low[1:] >= threshold) & (low[:-1] < threshold))[0]) + 1
    mixed = step_mixture(baseline, bold.policy, j, share(low[j], low[j - 1], threshold))
    return Choice((mixed,), (1.0,), "mixed")


def choose_episode(model: Model, baseline: np.ndarray, threshold: float) -> Choice:
    """EpsMix: one coin an episode between the two policies, whose mean lower bound is the threshold."""
    bold = model.optimistic()
    low, safe = model.pessimistic(np.stack([bold.policy, baseline]), bold.bonus)
    if low >= threshold:
        return Choice((bold.policy,), (1.0,), "optimistic")
    if safe < threshold:
        return Choice((baseline,), (1.0,), "baseline")
    rho = share(safe, low, threshold)
    return Choice((baseline, bold.policy), (1 - rho, rho), "mixed")


# --- what is kept -----------------------------------------------------------------------------------------------------


@dataclass
class MixedExploration(Exploration):
    """An exploration, and which policies it was made with."""

    kind = "mixed-exploration"

    optimistic: np.ndarray
    """(M, K) 1 for episodes of the optimistic policy alone, 0 for the baseline, 0.5 for a mixture."""

    @classmethod
    def of(cls, run: Exploration, optimistic: np.ndarray) -> MixedExploration:
        """``run`` with the kinds of its episodes."""
        return cls(**vars(run), optimistic=np.asarray(optimistic, dtype=np.float64))
