"""Tabular decision processes with exact answers, in float64.

A process has S states, A actions and a horizon H; the reward is paid on entering the next state. Terminal states keep
to themselves and pay nothing. Policies are tables: (S, A) for one that does not look at the time, (H, S, A) for one
that does. Values, occupancies and the optimum come from the recursions of Puterman (1994), chapter 4, without error
but that of rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))
"""Of lakes, (row, column): left, down, right, up, as in FrozenLake of gymnasium."""
MAPS = {
    4: ("SFFF", "FHFH", "FFFH", "HFFG"),
    8: ("SFFFFFFF", "FFFFFFFF", "FFFHFFFF", "FFFFFHFF", "FFFHFFFF", "FHHFFFHF", "FHFFHFHF", "FFFHFFFG"),
}
"""Lakes by size: S start, F frozen, H hole, G goal; the two maps of FrozenLake."""


@dataclass(frozen=True)
class MDP:
    """One process."""

    P: np.ndarray
    """(S, A, S) probabilities of the next state."""
    R: np.ndarray
    """(S, A, S) reward of entering it."""
    mu: np.ndarray
    """(S,) probabilities of the first state."""
    terminal: np.ndarray
    """(S,) bool."""
    horizon: int

    @property
    def states(self) -> int:
        return len(self.mu)

    @property
    def actions(self) -> int:
        return self.P.shape[1]

    @property
    def reward(self) -> np.ndarray:
        """(S, A) expected reward of an action."""
        return (self.P * self.R).sum(-1)


@dataclass(frozen=True)
class Solution:
    """A policy, and what it earns from every time on."""

    V: np.ndarray
    """(H + 1, S)."""
    Q: np.ndarray
    """(H, S, A)."""
    policy: np.ndarray
    """(H, S, A)."""
    value: float
    """Expected undiscounted return from the first state."""


@dataclass(frozen=True)
class Trajectories:
    """N episodes of at most H steps; rows after the end are copies of the terminal state without reward."""

    states: np.ndarray
    """(N, H) int64."""
    actions: np.ndarray
    """(N, H) int64."""
    rewards: np.ndarray
    """(N, H) float64."""
    next_states: np.ndarray
    """(N, H) int64."""
    mask: np.ndarray
    """(N, H) bool: steps that were made."""

    def __len__(self) -> int:
        return len(self.states)

    @property
    def returns(self) -> np.ndarray:
        """(N,) sums of rewards."""
        return np.asarray((self.rewards * self.mask).sum(1))

    @property
    def steps(self) -> int:
        """Steps that were made, of all episodes."""
        return int(self.mask.sum())


def timed(policy: np.ndarray, horizon: int) -> np.ndarray:
    """A policy (S, A) or (H, S, A) as (H, S, A). Raises ``ValueError`` where it is no policy of that horizon."""
    table = np.asarray(policy, dtype=np.float64)
    if table.ndim == 2:
        table = np.broadcast_to(table, (horizon, *table.shape))
    if table.ndim != 3 or len(table) != horizon:
        raise ValueError(f"a policy is a table (S, A) or ({horizon}, S, A), not {np.shape(policy)}")
    if (table < -1e-12).any() or not np.allclose(table.sum(-1), 1, atol=1e-8):
        raise ValueError("the rows of a policy are probabilities: at least 0, and their sum is 1")
    return table


def optimal(mdp: MDP) -> Solution:
    """Backward induction: Q_h = r + P V_{h+1}, V_h = max_a Q_h; ties go to the first action."""
    V, Q = np.zeros((mdp.horizon + 1, mdp.states)), np.zeros((mdp.horizon, mdp.states, mdp.actions))
    reward = mdp.reward
    for h in reversed(range(mdp.horizon)):
        Q[h] = reward + mdp.P @ V[h + 1]
        V[h] = Q[h].max(-1)
    return Solution(V, Q, np.eye(mdp.actions)[Q.argmax(-1)], float(mdp.mu @ V[0]))


def evaluate(mdp: MDP, policy: np.ndarray) -> Solution:
    """Exact values of a policy."""
    table = timed(policy, mdp.horizon)
    V, Q = np.zeros((mdp.horizon + 1, mdp.states)), np.zeros((mdp.horizon, mdp.states, mdp.actions))
    reward = mdp.reward
    for h in reversed(range(mdp.horizon)):
        Q[h] = reward + mdp.P @ V[h + 1]
        V[h] = (table[h] * Q[h]).sum(-1)
    return Solution(V, Q, table, float(mdp.mu @ V[0]))


def occupancy(mdp: MDP, policy: np.ndarray) -> np.ndarray:
    """(H, S, A) probabilities of being in a state at a time and acting so; each time sums to 1."""
    table = timed(policy, mdp.horizon)
    found, here = np.zeros_like(table), mdp.mu
    for h in range(mdp.horizon):
        found[h] = here[:, None] * table[h]
        here = np.einsum("sa,sat->t", found[h], mdp.P)
    return found


def _draw(rng: np.random.Generator, probabilities: np.ndarray) -> np.ndarray:
    """One index of each row (N, K)."""
    edges = probabilities.cumsum(-1)
    return np.asarray((rng.random((len(edges), 1)) * edges[:, -1:] >= edges).sum(-1))


def sample(mdp: MDP, policy: np.ndarray, count: int, rng: np.random.Generator) -> Trajectories:
    """``count`` episodes of a policy."""
    table, shape = timed(policy, mdp.horizon), (count, mdp.horizon)
    states, actions, following = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    rewards, mask = np.zeros(shape), np.zeros(shape, dtype=bool)
    here = _draw(rng, np.broadcast_to(mdp.mu, (count, mdp.states)))
    for h in range(mdp.horizon):
        act = _draw(rng, table[h][here])
        there = _draw(rng, mdp.P[here, act])
        states[:, h], actions[:, h], following[:, h] = here, act, there
        rewards[:, h], mask[:, h] = mdp.R[here, act, there], ~mdp.terminal[here]
        here = there
    return Trajectories(states, actions, rewards, following, mask)


# --- processes --------------------------------------------------------------------------------------------------------


def bandit(chances: Sequence[float]) -> MDP:
    """A Bernoulli bandit: from state 0 an arm leads to state 2 (reward 1) with its chance, else to state 1 (0)."""
    P, R = np.zeros((3, len(chances), 3)), np.zeros((3, len(chances), 3))
    P[0, :, 2], P[0, :, 1] = chances, 1 - np.asarray(chances)
    P[1, :, 1] = P[2, :, 2] = 1
    R[0, :, 2] = 1
    return MDP(P, R, np.array([1.0, 0, 0]), np.array([False, True, True]), 1)


def lake(size: int, hold: float, horizon: int) -> MDP:
    """FrozenLake from its rules: a move goes where it is aimed with probability ``hold``, else to a side, each half.

    The reward of 1 is paid on entering the goal; holes and goal end the episode. ``hold`` 1/3 is gymnasium's slippery
    lake, 1 the one that is not.
    """
    cells = "".join(MAPS[size])
    S = len(cells)
    P, R = np.zeros((S, 4, S)), np.zeros((S, 4, S))
    terminal = np.array([cell in "HG" for cell in cells])
    for state in range(S):
        if terminal[state]:
            P[state, :, state] = 1
            continue
        row, column = divmod(state, size)
        for aimed in range(4):
            for turn, chance in ((0, hold), (-1, (1 - hold) / 2), (1, (1 - hold) / 2)):
                down, right = MOVES[(aimed + turn) % 4]
                there = min(max(row + down, 0), size - 1) * size + min(max(column + right, 0), size - 1)
                P[state, aimed, there] += chance
                R[state, aimed, there] = float(cells[there] == "G")
    return MDP(P, R, np.eye(S)[cells.index("S")], terminal, horizon)


def random_mdp(seed: int, states: int, actions: int, horizon: int, alpha: float) -> MDP:
    """Transitions from a Dirichlet of concentration ``alpha``, rewards r(s, a) uniform in [0, 1], first state 0."""
    rng = np.random.default_rng(seed)
    P = rng.dirichlet(np.full(states, alpha), size=(states, actions))
    R = np.repeat(rng.random((states, actions))[..., None], states, axis=-1)
    return MDP(P, R, np.eye(states)[0], np.zeros(states, dtype=bool), horizon)


def softmax_policy(Q: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities in proportion to exp(Q / temperature), over the last axis."""
    scores = (Q - Q.max(-1, keepdims=True)) / temperature
    weights = np.exp(scores)
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def at_value(mdp: MDP, share: float) -> np.ndarray:
    """(H, S, A): softmax of the optimal Q, its temperature found such that it earns ``share`` of the optimum.

    Raises ``ValueError`` for a share that no temperature gives: not between the uniform policy's and 1.
    """
    best = optimal(mdp)

    def gap(log_temperature: float) -> float:
        return evaluate(mdp, softmax_policy(best.Q, float(np.exp(log_temperature)))).value - share * best.value

    if gap(-10.0) < 0 or gap(10.0) > 0:
        least = (gap(10.0) + share * best.value) / best.value
        raise ValueError(f"a softmax of the optimal values earns {least:.3f} to 1 of the optimum, not {share:g}")
    return softmax_policy(best.Q, float(np.exp(brentq(gap, -10.0, 10.0, xtol=1e-12))))
