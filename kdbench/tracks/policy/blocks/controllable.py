"""What of a future is in the hands of who acts, for tabular data: exact expectations, an energy, exact information.

A *decision* of the data is a state s, the action a that was taken and the return r from there on, a class of R. Behind
it lies a *future*: steps (s', a') with *outcomes* o, pairs of a reward and a next state. A code z of Z values is given
to a decision with q(z | s, a, r). All expectations are over the shares of the data, without sampling.

The energy f bounds what z tells of outcomes that the actions do not decide (Donsker and Varadhan). For a fixed rho
over outcomes and conditions k = (s, s', a'),

    bracket = sum_kzo J(k, z, o) f(k, z, o) - sum_kz J(k, z) log sum_o rho(o) exp f(k, z, o) <= KL(J(o | k, z) | rho)

weighted over k and z. Equality holds for f = log J(o | k, z) / rho(o); the right side is I(o ; z | k) plus a term that
does not depend on z. J counts every later step of a decision, so that z may tell of none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.tracks.policy.blocks.logged import Logged
from kdbench.tracks.policy.policies.tabular import Tables

if TYPE_CHECKING:
    from kdbench.tracks.policy.task import PolicyTask

OWN = 6.0
"""First logit of the code of one's own, which each action and return has where there are as many codes."""


@dataclass(frozen=True)
class Futures:
    """Shares of the decisions of logged episodes, and of what followed; float64."""

    returns: np.ndarray
    """(R,) returns from a step on, rising."""
    start: np.ndarray
    """(S,) shares of first states."""
    decisions: np.ndarray
    """(S, A, R), their sum is 1."""
    steps: np.ndarray
    """(S, A, R, O): the outcome of the decision's own step; summed over O the decisions."""
    later: np.ndarray
    """(S, A R, S A, O): expected number of steps of the future, by decision, condition and outcome."""
    outcomes: np.ndarray
    """(O,) shares of outcomes among all steps (rho)."""

    @classmethod
    def of(cls, problem: Logged, reach: int = 0) -> Futures:
        """Of all steps that were made; ``reach``: steps of the future, the own one included, 0: all."""
        data, S, A = problem.data, problem.states, problem.actions
        row, time = np.nonzero(data.mask)
        paid = data.rewards * data.mask
        to_go = np.round(np.cumsum(paid[:, ::-1], 1)[:, ::-1][row, time], 9)
        returns, r = np.unique(to_go, return_inverse=True)
        pairs = np.stack([np.round(data.rewards[row, time], 9), data.next_states[row, time]], 1)
        outcomes, o = np.unique(pairs, axis=0, return_inverse=True)
        o, R, n = o.ravel(), len(returns), len(row)
        s, a = data.states[row, time], data.actions[row, time]
        steps = np.zeros((S, A, R, len(outcomes)))
        np.add.at(steps, (s, a, r, o), 1 / n)
        later = np.zeros((S, A * R, S * A, len(outcomes)))
        length = data.mask.sum(1)[row] - time
        for ahead in range(int(length.max()) if reach == 0 else min(reach, int(length.max()))):
            here = np.flatnonzero(length > ahead)
            there = here + ahead  # steps of an episode lie side by side, in order of time
            np.add.at(later, (s[here], a[here] * R + r[here], s[there] * A + a[there], o[there]), 1 / n)
        start = np.bincount(data.states[:, 0], minlength=S) / len(data)
        return cls(returns, start, steps.sum(-1), steps, later, np.bincount(o, minlength=len(outcomes)) / n)

    def conditioned(self, r: int) -> np.ndarray:
        """(S, A) share of each action among the decisions of a state with return class ``r``; uniform without any."""
        counts = self.decisions[:, :, r]
        total = counts.sum(-1, keepdims=True)
        return np.asarray(np.where(total > 0, counts / np.where(total > 0, total, 1), 1 / counts.shape[1]))


def information(q: np.ndarray, steps: np.ndarray) -> float:
    """I(o ; z | s, a) in nats, exactly, of q (S, A, R, Z) and shares (S, A, R, O) of decisions and outcomes."""
    joint = np.einsum("sarz,saro->sazo", q, steps)
    both = joint.sum((-2, -1), keepdims=True)
    independent = joint.sum(-1, keepdims=True) * joint.sum(-2, keepdims=True)
    live = joint > 0
    ratio = np.where(live, joint * both, 1.0) / np.where(live, independent, 1.0)
    return float((joint * np.log(ratio)).sum())


def best_of(prior: np.ndarray, value: np.ndarray, draws: int, tie: float) -> np.ndarray:
    """(S, Z) probabilities that a code is taken: of ``draws`` samples of the prior (S, Z) the one of highest value.

    Exact: a value is the best drawn unless all draws are below it. Codes whose values lie within ``tie`` of the best of
    their group share its probability as the prior does, as the first of equal samples would.
    """
    found = np.zeros_like(prior)
    for s in range(len(prior)):
        order, below = np.argsort(-value[s], kind="stable"), 1.0
        while len(order):
            group = order[value[s][order] >= value[s][order[0]] - tie]
            mass = float(prior[s][group].sum())
            rest = max(below - mass, 0.0)
            if mass > 0:
                found[s][group] = (below**draws - rest**draws) * prior[s][group] / mass
            order, below = order[len(group) :], rest
        found[s] /= found[s].sum()
    return found


# --- what is learned --------------------------------------------------------------------------------------------------


class Codes(nn.Module):
    """Tables of one problem: q(z | s, a, r), pi(a | s, z), P(r | s, z) and the prior p(z | s), as logits."""

    def __init__(self, futures: Futures, latents: int, generator: torch.Generator, spread: float = 2.0) -> None:
        """``latents``: Z, 0: |A| |R|, where each action and return begins with a code of its own.

        The encoder's first logits have normal noise of deviation ``spread``, other tables begin as uniform.
        """
        super().__init__()
        S, A, R = futures.decisions.shape
        Z = latents or A * R
        first = spread * torch.randn(S, A * R, Z, generator=generator)
        if latents == 0:
            first += OWN * torch.eye(Z)
        self.encoder = nn.Parameter(first)
        self.policy = nn.Parameter(torch.zeros(S, Z, A))
        self.value = nn.Parameter(torch.zeros(S, Z, R))
        self.prior = nn.Parameter(torch.zeros(S, Z))
        for name, table in (
            ("decisions", futures.decisions.reshape(S, A * R)),
            ("later", futures.later),
            ("log_outcomes", np.log(futures.outcomes)),
        ):
            self.register_buffer(name, torch.as_tensor(table, dtype=torch.float32), persistent=False)

    def q(self) -> Tensor:
        """(S, A R, Z)."""
        return self.encoder.softmax(-1)

    def terms(self, q: Tensor) -> dict[str, Tensor]:
        """Means over the decisions, in nats: the codes of the actions, of the returns, of the prior, and the rate."""
        S, Z, A = self.policy.shape
        R = self.value.shape[-1]
        joint = self.decisions[..., None] * q
        mass = joint.view(S, A, R, Z)
        prior = F.log_softmax(self.prior, -1)[:, None]
        return {
            "actions": -(mass.sum(2).transpose(1, 2) * F.log_softmax(self.policy, -1)).sum(),
            "returns": -(mass.sum(1).transpose(1, 2) * F.log_softmax(self.value, -1)).sum(),
            "prior": -(joint.detach() * prior).sum(),
            "rate": (joint * (q.clamp_min(1e-12).log() - prior.detach())).sum(),
        }

    def bracket(self, energy: Tensor, q: Tensor) -> Tensor:
        """The bound of the module's head for an energy (S, S A, Z, O)."""
        joint = torch.einsum("scko,scz->skzo", self.later, q)
        free = (energy + self.log_outcomes).logsumexp(-1)
        return (joint * energy).sum() - (joint.sum(-1) * free).sum()

    def new_energy(self) -> Tensor:
        """(S, S A, Z, O) zeros."""
        S, _, K, outcomes = self.later.shape
        return torch.zeros(S, K, self.prior.shape[-1], outcomes, device=self.later.device)

    @torch.no_grad()
    def answers(self) -> dict[str, np.ndarray]:
        """Probabilities in float64: ``q`` (S, A R, Z), ``policy`` (S, Z, A), ``value`` (S, Z, R), ``prior`` (S, Z)."""
        tables = {"q": self.encoder, "policy": self.policy, "value": self.value, "prior": self.prior}
        return {name: logits.double().softmax(-1).cpu().numpy() for name, logits in tables.items()}


class Energies(nn.Module):
    """The energies of several problems, with their own optimizer."""

    def __init__(self, codes: Sequence[Codes], lr: float) -> None:
        super().__init__()
        self.tables = nn.ParameterList([nn.Parameter(one.new_energy()) for one in codes])
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr)

    def climb(self, codes: Sequence[Codes], steps: int, sign: float = 1.0) -> None:
        """``steps`` of gradient ascent of the brackets with the codes held; ``sign`` -1: descent."""
        q = [one.q().detach() for one in codes]
        for _ in range(steps):
            parts = [one.bracket(f, p) for one, f, p in zip(codes, self.tables, q, strict=True)]
            total = -sign * torch.stack(parts).sum()
            grads = torch.autograd.grad(total, list(self.tables))
            for table, grad in zip(self.tables, grads, strict=True):
                table.grad = grad
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


# --- what is kept -----------------------------------------------------------------------------------------------------


class CodedTables(Tables):
    """Policies that were conditioned on something, with what that promised."""

    kind = "coded-tables"

    def __init__(self, tables: Sequence[np.ndarray], promised: np.ndarray, information: np.ndarray) -> None:
        """``promised`` (M,): return that the condition stands for at the start; ``information`` (M,): in nats, what the
        condition tells of outcomes beyond the action, on the data."""
        super().__init__(tables)
        self.promised, self.information = (np.asarray(part, dtype=np.float64) for part in (promised, information))

    def save(self, folder: Path) -> None:
        super().save(folder)
        save_file({"promised": self.promised, "information": self.information}, folder / "conditions.safetensors")

    @classmethod
    def load(cls, folder: Path, task: PolicyTask) -> CodedTables:
        return cls(Tables.load(folder, task).tables, **load_file(folder / "conditions.safetensors"))


def extras(task: PolicyTask, model: CodedTables) -> dict[str, float]:
    """``promised`` return, ``consistency_gap`` between it and the exact one, ``information`` in nats; problems' means.

    For the evaluation alone.
    """
    achieved = task.scores(model).examples["values"]
    return {
        "promised": float(model.promised.mean()),
        "consistency_gap": float(np.abs(model.promised - achieved).mean()),
        "information": float(model.information.mean()),
    }
