"""LeaF: Learning to Focus by causal attention distillation (Guo, Yang, Sun, Ding, Liu and Lin, NeurIPS 2025).

A small student is misled by tokens that its teacher does not look at. LeaF finds such *confounding tokens* and lets the
student learn from instructions with and without them.

Stage 1, before training. For a training item, g_T[i] and g_S[i] are the norms of the gradient of the loss of the
response in the embedding of instruction token i, for the teacher and for the student as it starts; each is scaled to
[0, 1] over the instruction, and so is their difference g_T - g_S. Tokens within the lowest share ``rate`` of the
difference, and at most 0.5, are flagged: the student depends on them, the teacher does not. Every run of flagged tokens
without a gap is deleted by itself, which gives one counterfactual instruction; it is kept where teacher and student
now answer it rightly (``verify``). ``level: response`` does the same for the first steps of a response, on which its
later steps build.

Stage 2. lambda KL(p(.|x, y) || q(.|x, y)) + (1 - lambda) KL(p(.|x', y) || q(.|x', y)) on response tokens at temperature
1, where x' is a counterfactual instruction for both networks.

``prune`` has what the paper compares with: ``random`` tokens at the same rate; the tokens that surprise the student
most (``perplexity``); and ``none``, plain distillation. Where nothing passes ``verify``, stage 2 is plain distillation.

Evaluation adds how well score and flags find the sentences that are known to be irrelevant (area under the ROC curve
with its 95 % interval, precision, recall, and the share of such tokens as the precision of chance), exact match on test
items with and without such a sentence, the attention of the answers on it before and after training and of the teacher,
and what became of the counterfactuals. NuminaMath, AceCode, and the benchmarks of mathematics and code are beyond
students of this size; data with their own checkers are needed for ``judge: answer``.
"""

import json
import logging
from typing import Literal

import numpy as np
import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.divergences import fkl
from kdbench.losses.tokens import tok_mean
from kdbench.tracks.llm.blocks.counterfactuals import (
    contexts_of,
    difference,
    flagged,
    improved,
    rows_of,
    runs,
    solved,
    token_values,
    unit,
)
from kdbench.tracks.llm.blocks.distraction import attention_on_distractors, detection, resistance
from kdbench.tracks.llm.data.specs import InstructData
from kdbench.training.loaders import cycle

log = logging.getLogger(__name__)

PAPER = Paper(
    slug="leaf",
    title="Learning to Focus: Causal Attention Distillation via Gradient-Guided Token Pruning",
    year=2025,
    authors=["Yiju Guo", "Wenkai Yang", "Zexu Sun", "Ning Ding", "Zhiyuan Liu", "Yankai Lin"],
    venue="NeurIPS",
    arxiv="2506.07851",
    url="https://github.com/RUCBM/LeaF",
    track="llm",
    source="code",
    tasks=["instruct-distractors", "instruct"],
    requires=["logits", "weights"],
    tags=["off-policy", "data-augmentation", "attention", "gradients"],
    claims=[
        Compare(
            metric="exact_match_distracted",
            subject="leaf",
            reference={"method": "leaf", "params": {"prune": "none"}},
            tasks=["instruct-distractors"],
            note="At equal steps the student answers more instructions with an irrelevant sentence than plain KD.",
        ),
        Compare(
            metric="exact_match",
            subject="leaf",
            reference="kd_fkl",
            tasks=["instruct-distractors"],
            note="It is also better on all instructions.",
        ),
        Compare(
            metric="exact_match",
            subject="leaf",
            reference={"method": "leaf", "params": {"prune": "random"}},
            tasks=["instruct-distractors"],
            note="Tokens that the gradients choose are better to prune than random ones.",
        ),
        Compare(
            metric="exact_match",
            subject="leaf",
            reference={"method": "leaf", "params": {"prune": "perplexity"}},
            tasks=["instruct-distractors"],
            note="They are better to prune than the tokens of the highest perplexity.",
        ),
        Compare(
            metric="detection_auc",
            subject="leaf",
            reference=0.5,
            tasks=["instruct-distractors"],
            note="The difference of the gradients finds irrelevant sentences better than chance.",
        ),
        Compare(
            metric="attention_distractor",
            subject="leaf",
            reference={"method": "leaf", "params": {"prune": "none"}},
            tasks=["instruct-distractors"],
            direction="min",
            note="The answers pay less attention to irrelevant sentences.",
        ),
    ],
    departures=[
        "lambda is 0.5: the released code mixes both kinds of data and has no lambda",
        "the two terms are means over batches of their own, of the training data and of the counterfactuals",
        "labels are shifted once; the released mask uses unshifted ones",
        "tokens are deleted from the encoded row, the released code encodes the shortened text anew",
        "a share of the training items is examined, drawn from the job's seed, at a rate of 10 % instead of 5 to 10 %",
    ],
)


class LeafParams(Params):
    """How confounding tokens are found, which counterfactuals are kept, and what they weigh."""

    prune: Literal["gradient", "random", "perplexity", "none"] = Field(
        "gradient", description="which tokens go: by the gradients of both, at random, the least expected, or none"
    )
    level: Literal["instruction", "response"] = Field(
        "instruction", description="response: also the first steps of responses that have several"
    )
    items: int = Field(1500, ge=2, le=10_000_000, description="training items that are examined at most")
    rate: float = Field(0.1, ge=0, lt=1, description="share of the tokens of an instruction that is flagged")
    cap: float = Field(0.5, ge=0, le=1, description="largest difference, of 0 to 1, at which a token is flagged")
    verify: Literal["both", "teacher", "student", "none"] = Field(
        "both", description="who has to answer a counterfactual rightly for it to be kept"
    )
    judge: Literal["answer", "likelihood"] = Field(
        "answer", description="rightly: the greedy answer is right, or the reference is likelier than before"
    )
    failed: bool = Field(False, description="only items are examined that the student answers wrongly as they are")
    lam: float = Field(
        0.5, ge=0, le=1, description="lambda: weight of the whole instructions; the pruned have the rest"
    )
    pruned: float = Field(
        1.0, gt=0, le=16, description="counterfactuals of a step, as a multiple of the task's batch size"
    )


# --- stage 1: confounding tokens --------------------------------------------------------------------------------------


def score(task, params, student, contexts):
    """Score (n,) in [0, 1] of the tokens of each context: the smallest are taken for confounding."""
    if params.prune == "random":
        rng = task.rng("prune")
        return [rng.random(context.end - context.begin) for context in contexts]
    if params.prune == "perplexity":
        return [1 - unit(values) for values in token_values(task, student, contexts, "surprise")]
    teacher = token_values(task, task.teacher(), contexts, "gradient")
    mine = token_values(task, student, contexts, "gradient")
    return [difference(p, q) for p, q in zip(teacher, mine, strict=True)]


def verified(task, params, student, contexts, pruned, items):
    """The counterfactuals that pass; the teacher is asked about those only that passed the student."""
    judges = {"both": (student, task.teacher()), "teacher": (task.teacher(),), "student": (student,), "none": ()}
    for model in judges[params.verify] if pruned else ():
        if params.judge == "answer":
            passed = solved(task, model, pruned, items)
        else:
            passed = improved(task, model, [contexts[one.source] for one in pruned], pruned)
        pruned = [one for one, good in zip(pruned, passed, strict=True) if good]
    return pruned


def counterfactuals(task, params, student):
    """Verified counterfactuals of examined training items; what was found goes into ``detection.json``."""
    rows = task.train_items()
    count = min(params.items, len(rows))
    items = [rows[i] for i in np.sort(task.rng("data").choice(len(rows), count, replace=False))]
    contexts = contexts_of(items, task.tokenizer, steps=params.level == "response")
    if params.failed:
        right = solved(task, student, contexts, items)
        contexts = [context for context, known in zip(contexts, right, strict=True) if not known]
    scores = score(task, params, student, contexts) if contexts else []
    flags = [flagged(s, params.rate, c.fixed, params.cap) for s, c in zip(scores, contexts, strict=True)]
    pruned = [c.without(run, source=i) for i, c in enumerate(contexts) for run in runs(flags[i])]
    kept = verified(task, params, student, contexts, pruned, items)
    found = detection(contexts, scores, flags)
    hits = [contexts[one.source].distractor[place] for one in kept for place in one.deleted]
    found |= {"examined": len(contexts), "counterfactuals": len(pruned), "counterfactuals_kept": len(kept)}
    if found.get("distractor_share") and hits:
        found["kept_precision"] = float(np.mean(hits))
    task.artifact("detection.json").write_text(json.dumps(found, indent=1) + "\n")
    return kept


# --- stage 2: distillation --------------------------------------------------------------------------------------------


@hookimpl
def train(task, params):
    student = task.student()
    kept = counterfactuals(task, params, student) if params.prune != "none" else []
    if not kept and params.prune != "none":
        log.warning("leaf: no counterfactual passed (verify=%s); this is plain distillation", params.verify)
    size = max(1, round(params.pruned * task.spec.recipe.batch_size))
    more = cycle(task.loader(rows_of(kept, task.tokenizer), size)) if kept else None

    def divergence(model, batch):
        tokens = task.tokens(model, batch)
        return tok_mean(fkl(tokens.student, tokens.teacher))

    def loss(model, batch):
        if more is None:
            return {"kd": divergence(model, batch)}
        pruned = next(more)
        task.budget.spend("samples", len(pruned))
        return {
            "kd": params.lam * divergence(model, batch),
            "counterfactual": (1 - params.lam) * divergence(model, pruned),
        }

    task.fit(student, loss, state=[] if more is None else [more])
    return student


# --- evaluation -------------------------------------------------------------------------------------------------------


@hookimpl
def evaluate(task, model, params):
    values = task.score(model)
    if params.prune != "none":
        values |= json.loads(task.artifact("detection.json").read_text())
    if not isinstance(task.spec.data, InstructData):  # no irrelevant sentences are known
        return values
    resisted, table = resistance(task, model)
    task.artifact("distraction.json").write_text(json.dumps(table, indent=1) + "\n")
    with torch.no_grad():
        values |= {
            "attention_distractor": attention_on_distractors(task, model),
            "attention_distractor_before": attention_on_distractors(task, task.student()),
            "attention_distractor_teacher": attention_on_distractors(task, task.teacher()),
        }
    return values | resisted
