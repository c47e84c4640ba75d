"""Multi-Granularity Semantic Revision for Large Language Model Distillation (Liu et al., ACL 2026).

Sequences, tokens and spans are revised before the student learns from them:

* **sequences** (SCRG, correction and re-generation). The student answers a prompt. Among the tokens that the teacher
  would not have chosen, t* has the largest D_t = KL(p_t || q_t). The teacher's choice replaces it and the student
  writes the rest anew from t* + 1. A pool of such sequences, refreshed every ``refresh`` steps, gives a ``share`` of
  the batches, the ground truth the others;
* **tokens** (DAC-KL, distribution adaptive clipping). A small network reads the largest probabilities of p_t and q_t
  and gives two quantiles l < u of the teacher's mass. Logits outside are clipped to its borders through a soft gate,
  the most probable token stays, and the loss is KL(p_clip || q_clip). Its gradient trains the small network together
  with the student. At l = 0, u = 1 it is the forward KL;
* **spans**. For neighbouring tokens of one span (phrase, name, number, expression), c_t = p_t * p_t+1 by element, and
  L_span = mean ||c_t^T - c_t^S||^2.

Total: L = CE + L_DAC + L_span with unit weights. ``sequence``, ``token_loss`` and ``spans`` hold the ablations: own
answers without correction, correction without re-generation, the teacher's answers; fixed quantiles and plain
divergences; pairs of tokens anywhere.

``evaluate`` adds what the revision does to answers to test prompts (exact match and variety before and after it, share
of those whose mean log-likelihood under the teacher rises), the learned quantiles, and the error of the identity above.
Where a task keeps the teacher's outputs as top-k, all is over these k tokens and one event for the others. Students of
0.1B to 7B parameters and open-ended instructions are out of reach at this scale.
"""

import json
from typing import Literal

import torch
from safetensors.torch import load_file, save_file

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.losses.clipping import clipped_kl
from kdbench.losses.divergences import divergence, fkl
from kdbench.losses.spans import span_distance
from kdbench.losses.tokens import tok_mean
from kdbench.tracks.llm.blocks.alignment import vocabulary_bytes
from kdbench.tracks.llm.blocks.phrases import neighbours
from kdbench.tracks.llm.blocks.revision import Pool, Reviser, effect
from kdbench.training.quantiles import quantiles
from kdbench.training.rollouts import MixedBatches
from kdbench.training.schedules import Watch

PAPER = Paper(
    slug="multi_granularity_revision",
    title="Multi-Granularity Semantic Revision for Large Language Model Distillation",
    year=2026,
    authors=[
        "Xiaoyu Liu",
        "Yun Zhang",
        "Wei Li",
        "Simiao Li",
        "Xudong Huang",
        "Hanting Chen",
        "Yehui Tang",
        "Jie Hu",
        "Zhiwei Xiong",
        "Yunhe Wang",
    ],
    venue="ACL",
    track="llm",
    arxiv="2407.10068",
    source="paper",
    tasks=["instruct", "text"],
    requires=["logits"],
    tags=["on-policy", "divergence", "token-selection", "spans"],
    claims=[
        Compare(
            metric="exact_match",
            subject="multi_granularity_revision",
            reference={"method": "gkd", "params": {"lam": 0.2, "steps_fraction": 1.0}},
            tasks=["instruct"],
            kind="noninferior",
            note="At least as good as on-policy distillation at equal steps and about as many generated tokens.",
        ),
        Compare(metric="exact_match", subject="multi_granularity_revision", reference="distillm", tasks=["instruct"]),
        Compare(metric="exact_match", subject="multi_granularity_revision", reference="kd_fkl", tasks=["instruct"]),
        Compare(
            metric="exact_match",
            subject="multi_granularity_revision",
            reference={"method": "multi_granularity_revision", "params": {"share": 0.0}},
            tasks=["instruct"],
            note="The revised sequences help.",
        ),
        Compare(
            metric="exact_match",
            subject="multi_granularity_revision",
            reference={"method": "multi_granularity_revision", "params": {"token_loss": "fkl"}},
            tasks=["instruct"],
            note="The clipped divergence helps.",
        ),
        Compare(
            metric="exact_match",
            subject="multi_granularity_revision",
            reference={"method": "multi_granularity_revision", "params": {"span_weight": 0.0}},
            tasks=["instruct"],
            note="The correlation within spans helps.",
        ),
        Compare(
            metric="exact_match_revision_gain",
            subject="multi_granularity_revision",
            reference=0.0,
            tasks=["instruct"],
            note="Revised sequences are right more often than the student's own.",
        ),
        Compare(
            metric="distinct_2_revision_gain",
            subject="multi_granularity_revision",
            reference=0.0,
            tasks=["instruct"],
            note="And they vary more than what the teacher writes.",
        ),
        Compare(
            metric="open_region_error",
            subject="multi_granularity_revision",
            reference=0.0,
            tasks=["instruct", "text"],
            kind="noninferior",
            direction="min",
            margin=1e-5,
            note="Between the quantiles 0 and 1 the clipped divergence is the forward KL.",
        ),
    ],
    departures=[
        "the shape of the small network, its start and the border of the region are our reading, no code is public",
        "a least mass between the learned quantiles: without one they closed in on the top token, where KL is 0",
        "the cross-entropy is taken on the ground truth alone, not on the student's revised words (ce=all: on both)",
        "spans come from a chunker of patterns instead of a trained one",
        "a pool of prompts is revised every 50 steps, since there are hundreds of steps in all",
    ],
)


class MultiGranularityRevisionParams(Params):
    """Sequences, tokens and spans."""

    share: float = Field(0.5, ge=0, le=1, description="of batches that are revised sequences; the others are data")
    sequence: Literal["scrg", "substitute", "raw", "teacher"] = Field(
        "scrg", description="ablations: correction without re-generation, no correction, the teacher's answers"
    )
    choice: Literal["argmax", "sample"] = Field("argmax", description="how the teacher chooses tokens for corrections")
    corrections: int = Field(1, ge=1, le=16, description="corrections of one sequence, one after the other")
    refresh: int = Field(50, ge=1, le=1000000, description="steps after which the pool is made anew; 1: on-policy")
    pool: int = Field(160, ge=1, le=1000000, description="sequences in the pool")
    sampling_temperature: float = Field(1.0, gt=0, le=10, description="at which sequences are written")
    max_new: int = Field(24, ge=1, le=4096, description="longest written response in tokens")
    token_loss: Literal["dac", "fixed", "fkl", "rkl", "sym_kl", "jsd", "tvd", "sfkl", "srkl"] = Field(
        "dac", description="dac: learned quantiles, fixed: those of low and high, or a divergence without clipping"
    )
    low: float = Field(0.02, ge=0, lt=1, description="lower quantile of the teacher's mass: at the start, or fixed")
    high: float = Field(0.98, gt=0, le=1, description="upper quantile")
    least: float = Field(0.8, ge=0, lt=1, description="mass between learned quantiles; low, 1 - high < (1 - least) / 2")
    clip: Literal["border", "cut"] = Field(
        "border", description="tokens outside get the logit of the border they are beyond, or are taken away"
    )
    softness: float = Field(0.5, gt=0, le=10, description="of the border, in log-odds of the teacher's mass")
    keep_top: bool = Field(True, description="the teacher's most probable token is always inside")
    top_k: int = Field(50, ge=1, le=4096, description="probabilities of each side that the small network reads")
    hidden: int = Field(32, ge=1, le=4096, description="its hidden units")
    token_weight: float = Field(1.0, ge=0, le=1000, description="of the divergence")
    span_weight: float = Field(1.0, ge=0, le=1000, description="of the correlation within spans")
    spans: Literal["chunks", "anywhere"] = Field("chunks", description="pairs within spans, or all neighbours")
    ce_weight: float = Field(1.0, ge=0, le=1000, description="of the cross-entropy")
    ce: Literal["data", "all"] = Field("data", description="cross-entropy on the ground truth, or on all sequences")
    probes: int = Field(64, ge=1, le=100000, description="test prompts on which the revision is measured")


def quantiles_of(task, params):
    """What gives the log-odds of l and u from the logits of both sides."""
    shape = {name: getattr(params, name) for name in ("low", "high", "top_k", "hidden", "least")}
    with task.seeded("quantiles"):
        return quantiles(**shape, learned=params.token_loss == "dac").to(task.device)


def clipped(params, network, tokens):
    """The clipped divergence at each position (N,), the region, and the quantiles' log-odds."""
    low, high = network(tokens.student, tokens.teacher)
    options = {"softness": params.softness, "keep_top": params.keep_top, "clip": params.clip}
    return (*clipped_kl(tokens.student, tokens.teacher, low, high, **options), low, high)


def reviser_of(task, student, params, **changes):
    """The writer of revised sequences that the parameters describe."""
    options = {name: getattr(params, name) for name in ("sequence", "choice", "corrections", "max_new")}
    return Reviser(task, student, temperature=params.sampling_temperature, **(options | changes))


@hookimpl
def train(task, params):
    if params.token_weight == params.span_weight == 0 and (params.ce_weight == 0 or params.ce == "data"):
        raise UsageError("no term is left on the written sequences: give token_weight, span_weight or ce=all a weight")
    student, network = task.student(), quantiles_of(task, params)
    plain = None if params.token_loss in ("dac", "fixed") else divergence(params.token_loss)
    words, steps = vocabulary_bytes(task.tokenizer), task.budget.steps()
    reviser = reviser_of(task, student, params)
    pool = Pool(reviser, params.pool, params.refresh, task.rng("pool"), task.spec.evaluation.batch_size)
    batches = MixedBatches(task.train_loader(), pool, lambda step: params.share, task.rng("mix"))
    watch = Watch(task, steps)

    def loss(model, batch):
        tokens, parts = task.tokens(model, batch), {}
        if params.ce_weight > 0 and (params.ce == "all" or bool((batch.index >= 0).all())):
            parts["ce"] = params.ce_weight * tok_mean(tokens.nll)
        if params.token_weight > 0 and plain is not None:
            parts["tokens"] = params.token_weight * tok_mean(plain(tokens.student, tokens.teacher))
        elif params.token_weight > 0:
            values, region, low, high = clipped(params, network, tokens)
            parts["tokens"] = params.token_weight * tok_mean(values)
            watch.add(low=low.sigmoid().mean(), high=high.sigmoid().mean(), mass=region.mass.mean())
        if params.span_weight > 0:
            first = neighbours(batch, words, within_spans=params.spans == "chunks")
            parts["spans"] = params.span_weight * span_distance(tokens.student, tokens.teacher, first, tokens.events)
        return parts

    def on_step(step):
        pool.on_step(step)
        watch(step)

    task.fit(student, loss, loader=batches, modules=[network], on_step=on_step, state=[pool, watch])
    save_file(network.state_dict(), task.artifact("quantiles.safetensors"))
    return student


@torch.no_grad()
def region_statistics(task, model, params):
    """Means and spread of the quantiles and the region over the validation data, and the error of the open region."""
    network = quantiles_of(task, params)
    network.load_state_dict(load_file(task.artifact("quantiles.safetensors"), device=str(task.device)))
    columns, error = [], 0.0
    for batch in task.split("val").sequences.batches(task.spec.evaluation.batch_size, "val"):
        tokens = task.tokens(model, batch.to(task.device))
        _, region, low, high = clipped(params, network, tokens)
        columns.append(torch.stack([low.sigmoid(), high.sigmoid(), region.mass, region.tokens]).cpu())
        everywhere = torch.full_like(tokens.nll, torch.inf)
        opened, _ = clipped_kl(tokens.student, tokens.teacher, -everywhere, everywhere, clip=params.clip)
        error = max(error, float((opened - fkl(tokens.student, tokens.teacher)).abs().max()))
    values, names = torch.cat(columns, dim=1), ("low_quantile", "high_quantile", "dense_mass", "dense_tokens")
    deciles = values.quantile(torch.linspace(0, 1, 11), dim=1).T.tolist()
    task.artifact("quantiles.json").write_text(json.dumps({"deciles": dict(zip(names, deciles, strict=True))}) + "\n")
    found = dict(zip(names, values.mean(1).tolist(), strict=True))
    spread = {f"{name}_sd": float(row.std()) for name, row in zip(names[:2], values[:2], strict=True)}
    return found | spread | {"open_region_error": error}


@hookimpl
def evaluate(task, model, params):
    values = task.score(model)
    values |= effect(reviser_of(task, model, params, sequence="scrg"), params.probes)
    return values | (region_statistics(task, model, params) if params.token_loss in ("dac", "fixed") else {})
