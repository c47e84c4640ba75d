"""MEND: Meta dEmonstratioN Distillation for Efficient and Effective In-Context Learning.

Li et al., ICLR 2024. A frozen language model f learns from demonstrations in its context, and pays for them with every
query. A small distiller g reads the demonstrations once, followed by m learned embeddings, and its last m hidden states
(through a linear layer and tanh where the widths differ) are vectors v that f reads in place of the demonstrations
(section 3.1). f is never changed; gradients go through it into g. Two stages:

1. *meta-distillation pre-training* (section 3.2) on plain text: the first 80 % of a text are the "demonstrations", the
   rest is the "query"; loss KL(f(. | demonstrations, query) || f(. | v, query)) at the tokens of the query alone;
2. *meta-distillation fine-tuning* (section 3.3) over many tasks: the cross-entropy of the labels, and lambda times the
   same KL.

On a new task g runs once and no gradient is taken; v is kept for all queries of the task. The student of the task is
g, its teacher is f: the network that is returned is both (:mod:`kdbench.tracks.llm.networks.soft_prefix`).

What the paper compares with is in ``variant``: ``zero_shot`` (f reads the query alone), ``prompt_tuning`` (v fitted to
each task's demonstrations by gradient descent, without g); vanilla in-context learning is the method ``teacher``.
``match: hidden`` has g match the last hidden states of f instead of what it predicts. ``pretrain: 0`` is without stage
1; the shares of both stages may be given.

Evaluation adds, on the tasks of the test data, which have rules that nothing was trained on: accuracy of f with the
demonstrations and without them, and the share of this gap that v recovers; the same with permuted demonstrations, with
a share of false labels, and how often an inversion of all labels is followed; FLOPs and places that f reads per query,
with and without the share of g. Per task all of it is in ``tasks.json``.
"""

import json
import math
from typing import Literal

import numpy as np
import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import JobError, UsageError
from kdbench.losses.divergences import fkl
from kdbench.losses.tokens import IGNORE, tok_mean
from kdbench.tracks.llm.blocks.demonstrations import flipped, full_cost, inverted, permuted, prefix_cost
from kdbench.tracks.llm.data.encoding import encode
from kdbench.tracks.llm.data.icl import ARROW, SEPARATOR
from kdbench.tracks.llm.kinds.icl import Icl, choices
from kdbench.tracks.llm.networks.models import body_and_head, token_nll
from kdbench.tracks.llm.networks.soft_prefix import cut_rows, with_prefix

PAPER = Paper(
    slug="mend",
    title="MEND: Meta dEmonstratioN Distillation for Efficient and Effective In-Context Learning",
    year=2024,
    authors=["Yichuan Li", "Xiyao Ma", "Sixing Lu", "Kyumin Lee", "Xiaohu Liu", "Chenlei Guo"],
    venue="ICLR",
    track="llm",
    arxiv="2403.06914",
    source="code",
    tasks=["icl"],
    requires=["logits", "weights"],
    tags=["in-context-learning", "prompt-compression", "meta-learning", "off-policy"],
    claims=[
        Compare(
            metric="gap_recovered",
            subject="mend",
            reference=0.8,
            tasks=["icl"],
            kind="noninferior",
            note="Most of what demonstrations give beyond zero-shot on unseen tasks is in the vectors.",
        ),
        Compare(
            metric="flops_ratio",
            subject="mend",
            reference=1.0,
            tasks=["icl"],
            direction="min",
            note="A query costs fewer FLOPs than with the demonstrations, the distiller's share included.",
        ),
        Compare(
            metric="accuracy",
            subject="mend",
            reference={"method": "mend", "params": {"pretrain": 0.0}},
            tasks=["icl"],
            note="With as many steps of fine-tuning, it is better after pre-training on plain text than without.",
        ),
        Compare(
            metric="accuracy",
            subject="mend",
            reference={"method": "mend", "params": {"variant": "prompt_tuning"}},
            tasks=["icl"],
            note="It is better than vectors that are fitted to each task's demonstrations.",
        ),
    ],
    departures=[
        "the distiller starts as the student of the task, which was pre-trained on the same text as its teacher",
        "f reads its start token before the vectors, as it does before demonstrations",
        "the divergence is a mean over tokens; the released code's mean over a batch of masked tokens is the same",
        "the demonstrations of a task are those of the data, not drawn anew for every query",
    ],
)


COUNTED = 64
"""Queries of the test data whose FLOPs are counted."""


class MendParams(Params):
    """The distiller, its two stages, and what it is compared with."""

    variant: Literal["mend", "zero_shot", "prompt_tuning"] = Field(
        "mend", description="zero_shot: the query alone; prompt_tuning: vectors fitted to each task, without g"
    )
    vectors: int = Field(8, ge=1, le=1000, description="m, that stand for the demonstrations of a task")
    pretrain: float = Field(0.5, ge=0, le=1, description="share of the task's steps for stage 1; 0: without it")
    finetune: float = Field(0.5, ge=0, le=1, description="share of the task's steps for stage 2")
    text_share: float = Field(0.8, gt=0, lt=1, description="of a plain text, that is compressed; the rest is predicted")
    match: Literal["kl", "hidden"] = Field(
        "kl", description="of f with and without vectors: its predictions, or its last hidden states (squared distance)"
    )
    weight: float = Field(1.0, ge=0, le=100, description="lambda, of the match in stage 2, beside the cross-entropy")
    temperature: float = Field(1.0, gt=0, le=100, description="of both sides of the KL, whose factor is its square")
    pretrain_lr: float = Field(2e-3, gt=0, le=1, description="peak learning rate of stage 1")
    finetune_lr: float = Field(1e-3, gt=0, le=1, description="peak learning rate of stage 2")
    tuning_steps: int = Field(20, ge=1, le=10_000, description="prompt_tuning: steps of Adam for each task")
    tuning_lr: float = Field(0.03, gt=0, le=10, description="prompt_tuning: learning rate")
    flips: float = Field(0.25, ge=0, le=1, description="evaluation: share of the demonstrations with a false label")


# --- training ---------------------------------------------------------------------------------------------------------


def build(task, params, variant):
    """f as it is, and g in the task's initialisation; or f alone for the variants without g."""
    if not isinstance(task.kind, Icl):
        raise JobError(f"mend needs a task of demonstrations and queries; {task.spec.name} has none")
    marks = encode([SEPARATOR, ARROW], task.tokenizer)
    if any(len(ids) != 1 for ids in marks):
        raise JobError(f"mend needs {SEPARATOR!r} and {ARROW!r} to be single tokens of the task's tokenizer")
    tokens = {"separator": marks[0][0], "arrow": marks[1][0]}
    settings = {"vectors": 0 if variant == "zero_shot" else params.vectors}
    if variant == "prompt_tuning":
        settings |= {"tuning_steps": params.tuning_steps, "tuning_lr": params.tuning_lr}
    with task.seeded("prefix"):
        return with_prefix(task.teacher(), task.student() if variant == "mend" else None, tokens, **settings)


def text_cuts(batch, share):
    """(B,) first position after ``share`` of each text, start token aside; both parts have a token at least."""
    body = batch.attention_mask.sum(dim=1) - 1
    return 1 + (body * share).long().clamp(min=1).minimum(body - 1)


def distance(task, params, model, batch, cuts):
    """The match of f with vectors to f with the context, at the tokens after the cut; and the logits of the labels.

    Comes with the logits (N, V) that predict the labelled tokens after the cut, and these tokens (N,).
    """
    cut = cut_rows(batch, cuts)
    head = model.reader.get_output_embeddings()
    body, _ = body_and_head(task.teacher())
    with torch.no_grad():
        hidden = body(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).last_hidden_state
        present = cut.rest_mask.bool()
        target = hidden.gather(1, cut.places[..., None].expand(-1, -1, hidden.shape[-1]))[present]
    task.budget.spend("teacher_queries", len(batch))
    states = model.states(model.vectors(cut.context, cut.context_mask), cut)
    own = states[:, 1:][present]
    if params.match == "hidden":
        value = (own.float() - target.float()).square().mean() / target.float().square().mean()
    else:
        value = tok_mean(fkl(head(own), head(target), temperature=params.temperature))
    scored = cut.labels != IGNORE
    return value, head(states[:, :-1][scored]), cut.labels[scored]


@hookimpl
def train(task, params):
    if params.pretrain + params.finetune > 1:
        raise UsageError(
            f"mend: the stages have {params.pretrain} and {params.finetune} of the steps, more than all",
            hint="lower params.pretrain or params.finetune",
        )
    model = build(task, params, params.variant)
    if params.variant != "mend":
        return model

    def on_text(model, batch):
        return {params.match: distance(task, params, model, batch, text_cuts(batch, params.text_share))[0]}

    def on_tasks(model, batch):
        value, logits, labels = distance(task, params, model, batch, model.cuts(batch))
        parts = {"ce": tok_mean(token_nll(logits, labels))}
        return parts | ({params.match: params.weight * value} if params.weight else {})

    limit = int(task.spec.limits["steps"])
    first = int(params.pretrain * limit)
    second = min(math.ceil(params.finetune * limit), limit - first)
    if first:
        options = {"loader": task.loader(task.kind.plain_text()), "lr": params.pretrain_lr}
        task.fit(model, on_text, steps=first, tag="pretrain", **options)
    if second:
        task.fit(model, on_tasks, steps=second, tag="finetune" if first else "", lr=params.finetune_lr)
    return model


# --- evaluation -------------------------------------------------------------------------------------------------------


def reactions(task, model, rows, params):
    """What a model answers to each query (N,): to its task's demonstrations, and to changed ones; as right or wrong."""
    rng = task.rng("eval")
    changed = {"permuted": permuted(rows, rng), "flipped": flipped(rows, params.flips, rng), "inverted": inverted(rows)}
    answers = {"": choices(task, model, rows)} | {name: choices(task, model, made) for name, made in changed.items()}
    right = {name: answer == np.array([row.label for row in rows]) for name, answer in answers.items()}
    return {
        "accuracy": right[""],
        "accuracy_permuted": right["permuted"],
        "agreement_permuted": answers[""] == answers["permuted"],
        "accuracy_flipped": right["flipped"],
        "followed_inverted": answers["inverted"] == np.array([row.label for row in changed["inverted"]]),
    }


@hookimpl
def evaluate(task, model, params):
    test = task.split("test")
    rows, teacher = test.rows, task.teacher()
    own, full = (reactions(task, network, rows, params) for network in (model, teacher))
    nothing = choices(task, build(task, params, "zero_shot"), rows) == np.array([row.label for row in rows])
    accuracy, ceiling, floor = own["accuracy"].mean(), full["accuracy"].mean(), nothing.mean()
    counted = test.sequences.take(COUNTED)
    costs = prefix_cost(model, counted, task.device), full_cost(teacher, counted, task.device)
    values = {name: float(right.mean()) for name, right in own.items() if name != "accuracy"}
    values |= {f"icl_{name}": float(right.mean()) for name, right in full.items()}
    values |= {
        "zero_shot_accuracy": float(floor),
        "context_tokens": costs[0].context_tokens,
        "icl_context_tokens": costs[1].context_tokens,
        "query_mflops": costs[0].shared_flops / 1e6,
        "query_mflops_cached": costs[0].flops / 1e6,
        "icl_query_mflops": costs[1].flops / 1e6,
        "flops_ratio": costs[0].shared_flops / costs[1].flops,
    }
    if ceiling > floor:  # otherwise there is nothing to recover
        values["gap_recovered"] = float((accuracy - floor) / (ceiling - floor))
    places, names = np.array([row.task for row in rows]), {row.task: row.rule for row in rows}
    table = [
        {"rule": rule}
        | {name: float(right[places == number].mean()) for name, right in own.items()}
        | {f"icl_{name}": float(right[places == number].mean()) for name, right in full.items()}
        | {"zero_shot_accuracy": float(nothing[places == number].mean())}
        for number, rule in names.items()
    ]
    task.artifact("tasks.json").write_text(json.dumps(table, indent=1))
    return task.score(model) | values
