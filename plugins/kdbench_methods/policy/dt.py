"""Return conditioning: actions are imitated given the return that followed, and the highest one is asked for.

The tabular form of the decision transformer (Chen et al., NeurIPS 2021): a table pi(a | s, r) by maximum likelihood,
where r is the return of the episode (rewards come with the last step, so it is what follows each of its steps), and
pi(. | s, r_max) to act. On a bandit with arm probabilities b and chances p it
tends to b p / sum b p, which earns sum b p^2 / sum b p: luck is taken for skill.
"""

from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.policy.blocks.controllable import CodedTables, Futures, extras, information
from kdbench.tracks.policy.networks.tables import TableNet
from kdbench.tracks.policy.worlds.tabular import evaluate as value_of

BASELINE = Baseline(
    slug="dt",
    title="Return-conditioned imitation (tabular decision transformer)",
    track="policy",
    tasks=["offline"],
    requires=["labels"],
    tags=["offline", "conditioning"],
    reference="Chen et al., NeurIPS 2021, arXiv 2106.01345",
)


class DtParams(Params):
    """What is asked for."""

    target: Literal["max", "mean"] = Field(
        "max", description="return to ask for: the highest, or the one nearest the mean"
    )


@hookimpl
def train(task, params):
    problems = task.problems()
    futures = [Futures.of(problem) for problem in problems]
    model = task.place(
        TableNet([(p.states * len(f.returns), p.actions) for p, f in zip(problems, futures, strict=True)])
    )
    shares = [torch.as_tensor(f.returns, dtype=torch.float32, device=task.device) for f in futures]
    loader = task.train_loader()

    def loss(model, batch):
        parts = []
        for number, returns in enumerate(shares):
            states, actions, mask = batch.states[number], batch.actions[number], batch.mask[number]
            r = (batch.returns[number][:, None] - returns).abs().argmin(-1, keepdim=True)
            rows = (states * len(returns) + r)[mask]
            parts.append(F.cross_entropy(model(rows, number), actions[mask]))
        return torch.stack(parts).mean()

    task.fit(model, loss, loader=loader)
    tables, promised, told = [], [], []
    for one, probabilities in zip(futures, model.tables(), strict=True):
        S, A, R = one.decisions.shape
        r = (
            R - 1
            if params.target == "max"
            else int(np.abs(one.returns - one.decisions.sum((0, 1)) @ one.returns).argmin())
        )
        tables.append(probabilities.cpu().numpy().reshape(S, R, A)[:, r])
        promised.append(one.returns[r])
        told.append(information(np.broadcast_to(np.eye(R), (S, A, R, R)), one.steps))
    return CodedTables(tables, np.array(promised), np.array(told))


@hookimpl
def evaluate(task, model):
    """Official metrics, what was asked for, and how far the return is from that of counted shares."""
    exact = []
    for mdp, problem, asked in zip(task.mdps(), task.problems(), model.promised, strict=True):
        counted = Futures.of(problem)
        r = int(np.abs(counted.returns - asked).argmin())
        exact.append(value_of(mdp, counted.conditioned(r)).value)
    error = np.abs(task.scores(model).examples["values"] - exact).mean()
    return task.score(model) | extras(task, model) | {"dt_error": float(error)}
