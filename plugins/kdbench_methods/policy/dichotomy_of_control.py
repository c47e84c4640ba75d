"""Dichotomy of control: a policy is conditioned on what of a future it can bring about, and on nothing else.

A decision of the data is a state s, an action a and the return r that followed. A code z of it is drawn from
q(z | s, a, r); a policy pi(a | s, z), a value P(r | s, z) and a prior p(z | s) are fitted to it:

    min over q, pi, P, p   E[ -log pi(a | s, z) - log P(r | s, z) ] + KL(sg q | p) + w KL(q | sg p)
                           + lambda max over f  E[ f(o, z) - log E_rho exp f(o~, z) ]

where o = (reward, next state) of every step that followed, f is conditioned on the two states and the action, and rho
is the share of outcomes in the data. The inner maximum is the information that z has of outcomes beyond the actions,
up to a constant; the minimum drives it to 0, so that luck cannot be asked for. Three ascent steps of f precede each
step of the rest. To act, K codes are drawn from the prior, the one of highest expected return is taken and
pi(. | s, z) is played. Tables are small, so all expectations are exact, also the one over the K draws.

Without the constraint (``lam=0``) z may hold the return itself, and the policy is that of return conditioning (``dt``).
``energy="descend"`` is one scalar that everything descends, the energy included: it does not bound the information.
"""

from typing import Literal

import numpy as np
import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.policy.blocks.controllable import (
    CodedTables,
    Codes,
    Energies,
    Futures,
    best_of,
    extras,
    information,
)

PAPER = Paper(
    slug="dichotomy_of_control",
    title="Dichotomy of Control: Separating What You Can Control from What You Cannot",
    authors=["Mengjiao Yang", "Dale Schuurmans", "Pieter Abbeel", "Ofir Nachum"],
    year=2023,
    venue="ICLR 2023",
    track="policy",
    arxiv="2210.13435",
    source="code",
    tasks=["offline"],
    requires=["labels"],
    tags=["offline", "conditioning"],
    claims=[
        Compare(
            metric="dt_error",
            subject="dt",
            reference=0.0,
            tasks=["bandits"],
            kind="noninferior",
            margin=0.03,
            direction="min",
            note="conditioned on reward, a bandit policy earns sum b p^2 / sum b p",
        ),
        Compare(metric="return", subject="dichotomy_of_control", reference="dt", tasks=["bandits"], margin=0.03),
        Compare(metric="return", subject="dichotomy_of_control", reference="dt", tasks=["lake"]),
        Compare(
            metric="optimality",
            subject="dichotomy_of_control",
            reference=1.0,
            tasks=["bandits"],
            kind="noninferior",
            margin=0.02,
            note="the optimal arm is found where outcomes are stochastic",
        ),
        Compare(
            metric="information",
            subject="dichotomy_of_control",
            reference=0.0,
            tasks=["bandits"],
            kind="noninferior",
            margin=0.02,
            direction="min",
        ),
        Compare(
            metric="consistency_gap",
            subject="dichotomy_of_control",
            reference="dt",
            tasks=["bandits", "lake"],
            direction="min",
        ),
        Compare(
            metric="return",
            subject="dichotomy_of_control",
            reference="dt",
            tasks=["lake-still"],
            kind="noninferior",
            margin=0.05,
            note="where nothing is left to chance both are alike",
        ),
    ],
    departures=[
        "The published min-max is solved; the released losses descend one scalar, as with energy='descend'.",
        "The history is the state, and the future that is encoded is the action and the return: the worlds are Markov.",
        "Expectations over codes, outcomes and draws are exact, where the paper samples them; a step sees all data.",
        "Inference ranks samples of the prior, as the paper says; the released code ranks those of the posterior.",
    ],
)


class DichotomyOfControlParams(Params):
    """The constraint, the codes, and how they are chosen."""

    lam: float = Field(5.0, ge=0, le=1000, description="weight of the constraint (lambda); 0: none")
    latents: int = Field(0, ge=0, le=1024, description="values of the code; 0: actions times distinct returns")
    spread: float = Field(
        2.0,
        ge=0,
        le=10,
        description="deviation of the encoder's first logits; small: codes of rare actions merge",
    )
    inner: int = Field(3, ge=1, le=100, description="steps of the energy before each step of the rest")
    energy_lr: float = Field(0.01, gt=0, le=1, description="learning rate of the energy")
    energy: Literal["ascend", "descend"] = Field(
        "ascend", description="ascend: the min-max; descend: one scalar for all, as in the released losses"
    )
    rate: float = Field(0.1, ge=0, le=10, description="weight w of KL(q | sg p)")
    reach: int = Field(0, ge=0, le=10000, description="steps of the future that are constrained; 0: all")
    draws: int = Field(100, ge=1, le=100000, description="codes that are drawn from the prior to act (K)")
    tie: float = Field(
        0.01, ge=0, le=1, description="values that differ by less count as equal, in units of the return"
    )


def chosen(answers, futures, draws, tie):
    """Policy (S, A) and the return that it promises in each state (S,), of the tables of :meth:`Codes.answers`."""
    value = answers["value"] @ futures.returns
    weight = best_of(answers["prior"], value, draws, tie)
    return np.einsum("sz,sza->sa", weight, answers["policy"]), (weight * value).sum(-1)


@hookimpl
def train(task, params):
    problems = task.problems()
    futures = [Futures.of(problem, params.reach) for problem in problems]
    generator = task.generator("codes")
    codes = task.place(torch.nn.ModuleList([Codes(one, params.latents, generator, params.spread) for one in futures]))
    energies = Energies(codes, params.energy_lr)
    sign = 1.0 if params.energy == "ascend" else -1.0

    def loss(model, batch):
        if params.lam:
            energies.climb(model, params.inner, sign)
        terms = {}
        for one, energy in zip(model, energies.tables, strict=True):
            q = one.q()
            parts = one.terms(q)
            parts["rate"] = params.rate * parts["rate"]
            if params.lam:
                parts["control"] = params.lam * one.bracket(energy.detach(), q)
            for name, value in parts.items():
                terms[name] = terms.get(name, 0) + value
        return terms

    loader = task.train_loader(len(problems[0].data))  # a batch is all of the data
    task.fit(codes, loss, loader=loader, state=(energies, energies.optimizer))

    tables, promised, told = [], [], []
    for one, model in zip(futures, codes, strict=True):
        answers = model.answers()
        table, values = chosen(answers, one, params.draws, params.tie)
        tables.append(table)
        promised.append(one.start @ values)
        told.append(information(answers["q"].reshape(*one.decisions.shape, -1), one.steps))
    return CodedTables(tables, np.array(promised), np.array(told))


@hookimpl
def evaluate(task, model):
    """Official metrics, what the chosen codes promise, and what they know of chance."""
    return task.score(model) | extras(task, model)
