"""How likely a hidden Markov model thinks it is that a format can still be met: the look-ahead of Ctrl-G and Deco-G.

For an automaton of states s and a model (alpha, beta), the probability that the next r tokens lead to an accepting
state, where the next one is emitted by h, is

    W[s, 0, h] = 1 if s accepts, else 0
    W[s, r, h] = sum_v beta_h(v) sum_h' alpha_{h, h'} W[delta(s, v), r - 1, h'].

Tokens that lead from s to the same s' are summed up once, B_{ss'}(h) = sum of beta_h(v) over them (Zhang et al.,
NeurIPS 2024). A literal that the model never saw is less likely than the smallest float32, so rows (s, r) carry the
logarithm of their largest value apart.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.tracks.decoding.blocks.automata import DEAD, Automaton
from kdbench.tracks.decoding.blocks.hmm import HMM

LEAST = -1e6
"""Logarithm of a factor that the model says is zero where the automaton says that there is a way."""


def edges_of(automaton: Automaton) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of states that a token leads between: source (E,), destination (E,), and the pair of each token (S, V).

    The last is -1 for tokens that lead nowhere. Edges are ordered by source, then by destination.
    """
    delta, states = automaton.delta, automaton.states
    alive = delta != DEAD
    keys = torch.arange(states, device=delta.device)[:, None] * states + delta
    pairs, number = keys[alive].unique(return_inverse=True)
    edge = torch.full_like(delta, -1)
    edge[alive] = number
    return pairs // states, pairs % states, edge


def smallest_set(mass: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The fewest hidden states that hold at least 1 - ``eps`` of each row of ``mass`` (B, H), which sums to one.

    States (B, K) in order of their mass, K the most that a row needs, and their mass, renormalised, 0 where a row needs
    fewer. One state stays at least.
    """
    ordered, states = mass.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    needed = before < 1 - eps
    needed[:, 0] = True
    width = int(needed.sum(-1).max())
    kept = (ordered * needed)[:, :width]
    return states[:, :width], kept / kept.sum(-1, keepdim=True)


class Lookahead:
    """The table of one model, one automaton and up to ``length`` tokens, and what decoding asks of it."""

    @torch.no_grad()
    def __init__(self, model: HMM, automaton: Automaton, length: int) -> None:
        self.model, self.automaton, self.length = model, automaton, length
        self.source, self.destination, self.edge = edges_of(automaton)
        count = len(self.source)
        alive = self.edge >= 0
        where = torch.stack([self.edge[alive], alive.nonzero()[:, 1]])
        ones = torch.ones(where.shape[1], dtype=model.emission.dtype, device=where.device)
        indicator = torch.sparse_coo_tensor(where, ones, (count, automaton.vocabulary), check_invariants=True)
        self.emitted = torch.sparse.mm(indicator, model.emission.t())
        """(E, H): B_{ss'}(h)."""
        starts = torch.searchsorted(self.source, torch.arange(automaton.states, device=where.device))
        ends = torch.searchsorted(self.source, torch.arange(automaton.states, device=where.device), right=True)
        rank = torch.arange(int((ends - starts).max()), device=where.device)
        self.edges = torch.where(rank < (ends - starts)[:, None], starts[:, None] + rank, count)
        """(S, K): edges of each state, E where there are fewer than K."""
        self.label = torch.where(alive, self.edge - starts[:, None], 0)
        """(S, V): which edge of its state a token is; 0 where it leads nowhere."""
        self.distance = automaton.distance
        self.values, self.logs = self._table()

    def _table(self) -> tuple[Tensor, Tensor]:
        """sum_h' alpha_{h, h'} W[s, r, h'] as (length + 1, S, H) of at most one, and the logarithms (length + 1, S)."""
        accepting = self.automaton.accepting
        w = accepting[:, None].to(self.model.emission).expand(-1, self.model.states)
        log = torch.zeros_like(w[:, 0]).masked_fill(~accepting, -torch.inf)
        values, logs = [], []
        for remaining in range(self.length + 1):
            if remaining:
                w, log = self._before(values[-1], logs[-1])
            values.append(w @ self.model.transition.t())
            logs.append(log)
        return torch.stack(values), torch.stack(logs)

    def _before(self, value: Tensor, log: Tensor) -> tuple[Tensor, Tensor]:
        """W of one more remaining token, scaled, from the table's row of one fewer."""
        reached = log[self.destination]
        most = torch.full_like(log, -torch.inf).scatter_reduce(0, self.source, reached, "amax")
        base = torch.where(most.isfinite(), most, 0)
        share = self.emitted * value[self.destination] * (reached - base[self.source]).exp()[:, None]
        w = torch.zeros_like(value).index_add_(0, self.source, share)
        largest = w.amax(-1)
        possible = largest > 0
        w = torch.where(possible[:, None], w / torch.where(possible, largest, 1)[:, None], 0)
        return w, torch.where(possible, base + largest.log(), -torch.inf)

    def log_table(self) -> Tensor:
        """(S, length + 1, H): log W."""
        accepting = self.automaton.accepting
        first = torch.zeros(self.automaton.states, self.model.states).masked_fill(~accepting[:, None], -torch.inf)
        rows = [first.to(self.values)]
        for remaining in range(self.length):
            w, log = self._before(self.values[remaining], self.logs[remaining])
            rows.append(w.log() + log[:, None])
        return torch.stack(rows, dim=1)

    def allowed(self, states: Tensor, remaining: Tensor) -> Tensor:
        """(B, V) bool: tokens after which ``remaining`` - 1 more suffice; all of them can be written by the model."""
        after = self.automaton.delta[states]
        return (after != DEAD) & (self.distance[after.clamp(min=0)] <= (remaining - 1)[:, None])

    @torch.no_grad()
    def reweigh(self, message: Tensor, states: Tensor, remaining: Tensor, eps: float = 0.0) -> tuple[Tensor, Tensor]:
        """log C(v) (B, V) and the number of hidden states (B,) that it was computed from.

        ``message`` (B, H) is P(h_t | x_<t), ``states`` (B,) are those of the automaton, ``remaining`` (B,) tokens may
        still be written, the next one included. C(v) = P(the format is met | x_<t, v) is -inf exactly where no text of
        that length meets it: that is read off the automaton, so neither pruning nor underflow forbids the last way.
        """
        beta, tiny = self.model.emission, torch.finfo(message.dtype).tiny
        edges = self.edges[states]
        known = edges < len(self.source)
        target = self.destination[edges.clamp(max=len(self.source) - 1)]
        ahead = self.values[(remaining - 1)[:, None], target]
        logs = self.logs[(remaining - 1)[:, None], target].masked_fill(~known, -torch.inf)
        if eps > 0:
            kept, mass = smallest_set(message, eps)
            used = (mass > 0).sum(-1)
            emission = beta[kept]
            ahead = ahead.gather(-1, kept[:, None].expand(-1, ahead.shape[1], -1))
        else:
            mass, emission, used = message, beta, torch.full_like(states, self.model.states)
        joint = (mass[:, None] * ahead) @ emission
        alone = (mass[:, None] @ emission).squeeze(1)
        label = self.label[states]
        chosen = joint.gather(1, label[:, None]).squeeze(1)
        value = chosen.clamp_min(tiny).log() - alone.clamp_min(tiny).log() + logs.gather(1, label)
        return value.clamp_min(LEAST).masked_fill(~self.allowed(states, remaining), -torch.inf), used

    @torch.no_grad()
    def advance(self, message: Tensor, tokens: Tensor, eps: float = 0.0) -> Tensor:
        """P(h_{t+1} | x_1..x_t) (B, H) from P(h_t | x_<t) and x_t (B,), of the states that pruning keeps.

        A token that no kept state emits tells nothing: it counts as missing.
        """
        if eps > 0:
            kept, mass = smallest_set(message, eps)
            message = torch.zeros_like(message).scatter(1, kept, mass)
        joint = message * self.model.evidence(tokens)
        joint = torch.where(joint.sum(-1, keepdim=True) > 0, joint, message)
        after = joint @ self.model.transition
        return after / after.sum(-1, keepdim=True)
