"""Exploration of an unknown process, an episode at a time; what is played is valued exactly, out of sight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kdbench.errors import OverBudget
from kdbench.tracks.policy.policies.tabular import Exploration
from kdbench.tracks.policy.worlds.tabular import MDP, Trajectories, at_value, evaluate, optimal, sample, timed


@dataclass(frozen=True)
class Episode:
    """One played episode."""

    states: np.ndarray
    """(H,) int64."""
    actions: np.ndarray
    """(H,) int64."""
    rewards: np.ndarray
    """(H,) float64."""
    next_states: np.ndarray
    """(H,) int64."""
    chosen: int
    """Which policy of a mixture was played; 0 where there was one."""


class Session:
    """One process to explore. Known are its sizes, its rewards, its first state, a safe baseline and the threshold.

    The transitions are not. Every episode must be played with a policy of value at least :attr:`threshold`; whether it
    was is recorded with exact values, which the method does not see.
    """

    def __init__(
        self,
        mdp: MDP,
        *,
        safe: float,
        slack: float,
        episodes: int,
        rng: np.random.Generator,
        spend: Callable[[str, float], None],
    ) -> None:
        """``safe``: value of the baseline over the optimum; ``slack``: what an episode may earn less than it."""
        self._mdp, self._rng, self._spend, self._values = mdp, rng, spend, []
        self._known: dict[bytes, float] = {}
        self.baseline = at_value(mdp, safe)
        """(H, S, A) safe policy, whose value is known."""
        self.baseline_value = evaluate(mdp, self.baseline).value
        self.threshold = (1 - slack) * self.baseline_value
        """What every episode must earn, in expectation (gamma)."""
        self.episodes = episodes
        """How many there are to play."""

    @property
    def states(self) -> int:
        return self._mdp.states

    @property
    def actions(self) -> int:
        return self._mdp.actions

    @property
    def horizon(self) -> int:
        return self._mdp.horizon

    @property
    def rewards(self) -> np.ndarray:
        """(S, A) rewards in [0, 1], known."""
        return self._mdp.reward

    @property
    def start(self) -> np.ndarray:
        """(S,) probabilities of the first state, known."""
        return self._mdp.mu

    @property
    def left(self) -> int:
        """Episodes that were not played yet."""
        return self.episodes - len(self._values)

    def play(self, policy: np.ndarray) -> Episode:
        """Play one episode of a policy (H, S, A) or (S, A). Raises ``OverBudget`` where none is left."""
        return self.play_mixture([policy], [1.0])

    def play_mixture(self, policies: Sequence[np.ndarray], weights: Sequence[float]) -> Episode:
        """One episode of one of several policies, drawn with ``weights`` (sum 1) before it begins.

        The value of the episode is the mean over the draw.
        """
        if self.left < 1:
            raise OverBudget(f"all {self.episodes} episodes of this process are played")
        shares = np.asarray(weights, dtype=np.float64)
        if len(shares) != len(policies) or (shares < 0).any() or abs(shares.sum() - 1) > 1e-9:
            raise ValueError(
                f"{len(policies)} policies need as many weights of at least 0 that sum to 1, not {weights}"
            )
        tables = [timed(policy, self.horizon) for policy in policies]
        self._values.append(float(shares @ [self._value(table) for table in tables]))
        chosen = int(self._rng.choice(len(tables), p=shares)) if len(tables) > 1 else 0
        one = sample(self._mdp, tables[chosen], 1, self._rng)
        self._spend("env_steps", one.steps)
        return Episode(one.states[0], one.actions[0], one.rewards[0], one.next_states[0], chosen)

    def logged(self, count: int) -> Trajectories:
        """``count`` logged episodes of the safe baseline, for methods that are not told what it is.

        Metered as ``demonstrations``; their noise is not that of the episodes to play.
        """
        self._spend("demonstrations", count)
        return sample(self._mdp, self.baseline, count, self._rng.spawn(1)[0])

    def _value(self, table: np.ndarray) -> float:
        key = table.tobytes()
        if key not in self._known:
            if len(self._known) > 4096:
                self._known.clear()
            self._known[key] = evaluate(self._mdp, table).value
        return self._known[key]


def explored(sessions: Sequence[Session]) -> Exploration:
    """What was played in all sessions. Raises ``OverBudget`` where episodes are left in one: methods play them all."""
    left = [session.left for session in sessions]
    if any(left):
        raise OverBudget(
            f"{sum(left)} episodes were not played; a method plays all {sessions[0].episodes} of a process"
        )
    return Exploration(
        values=np.array([session._values for session in sessions]),
        optimum=np.array([optimal(session._mdp).value for session in sessions]),
        baseline=np.array([session.baseline_value for session in sessions]),
        threshold=np.array([session.threshold for session in sessions]),
    )
