"""MiniPLM: Knowledge Distillation for Pre-Training Language Models.

Gu, Zhou, Meng, Zhou and Huang, ICLR 2025. The teacher chooses what is worth reading, once and offline, and is never
asked again. *Difference sampling*:

1. train a small reference model R on a random slice of the corpus;
2. score every chunk x once by its mean token NLL under teacher and reference;
3. r(x) = NLL_R(x) - NLL_T(x), per token log p_T(x) / p_R(x): large for hard but learnable text, small for what is
   easy for everybody, negative for noise that the reference has fallen for;
4. keep the top fraction rho by r, in the original order of the corpus;
5. pre-train students by plain cross-entropy on what is kept: students of any family and any tokenizer.
"""

import json
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import JobError
from kdbench.losses.divergences import fkl
from kdbench.task import count_parameters
from kdbench.tracks.llm.blocks.domains import forward_flops, model_nll, row_nll
from kdbench.tracks.llm.evaluate import distinct
from kdbench.tracks.llm.scoring import scored_tokens
from kdbench.tracks.llm.spec import Net
from kdbench.training.distill import hard_loss, train_with_divergence

PAPER = Paper(
    slug="miniplm",
    title="MiniPLM: Knowledge Distillation for Pre-Training Language Models",
    year=2025,
    authors=["Yuxian Gu", "Hao Zhou", "Fandong Meng", "Jie Zhou", "Minlie Huang"],
    venue="ICLR",
    track="llm",
    arxiv="2410.17215",
    source="code",
    tasks=["text"],
    requires=["logits"],
    tags=["data-selection", "offline", "cross-tokenizer", "pre-training"],
    claims=[
        Compare(
            metric="bits_per_byte",
            subject="miniplm",
            reference={"method": "miniplm", "params": {"selection": "random"}},
            tasks=["text", "text-noisy"],
            note="At equal student tokens, difference sampling is better than a random subset of the same size.",
        ),
        Compare(
            metric="bits_per_byte",
            subject="miniplm",
            reference={"method": "miniplm", "params": {"selection": "online_kd"}},
            tasks=["text", "text-noisy"],
            note="At equal FLOPs of training, difference sampling is better than distillation during pre-training.",
        ),
        Compare(
            metric="kept_distinct_3",
            subject="miniplm",
            reference={"method": "miniplm", "params": {"selection": "low_perplexity"}},
            tasks=["text", "text-noisy"],
            note="Unlike the choice of what the teacher finds easy, difference sampling keeps the data diverse.",
        ),
    ],
    departures=["the student is the task's own initialisation unless from_scratch is set, as for every other method"],
)


class MiniPlmParams(Params):
    """The selection, the reference model, and the student that is trained on what is kept."""

    selection: Literal["difference", "random", "low_perplexity", "all", "online_kd"] = Field(
        "difference",
        description="kept: top by r, random, lowest teacher NLL, all; online_kd: all, distilled live in fewer steps",
    )
    rho: float = Field(0.5, gt=0, le=1, description="fraction of the chunks that is kept")
    reference_slice: float = Field(
        0.2, gt=0, le=1, description="fraction of the chunks that the reference is trained on"
    )
    reference_steps: float = Field(1.0, gt=0, le=100, description="of the reference, as a multiple of the task's steps")
    reference_layers: int = Field(1, ge=1, le=48, description="layers of the reference")
    reference_width: int = Field(48, ge=8, le=4096, description="width of the reference, with four heads")
    from_scratch: bool = Field(
        False, description="the student starts from random weights instead of its initialisation"
    )
    family: Literal["task", "llama", "gpt2"] = Field(
        "task", description="of the student; any other starts from scratch"
    )
    tokenizer: Literal["task", "bytes", "bpe512", "bpe1024", "bpe2048"] = Field(
        "task", description="of the student; any but the task's starts from scratch"
    )
    students: int = Field(
        1, ge=1, le=1000, description="that share one selection; each is charged its share of the cost"
    )
    kd_ratio: float = Field(0.5, ge=0, le=1, description="online_kd: weight of forward KL beside the cross-entropy")


# --- difference sampling ----------------------------------------------------------------------------------------------


def difference(reference_nll, teacher_nll):
    """``r(x) = NLL_R(x) - NLL_T(x)`` of each chunk, (N,) in nats per token; 0 where the reference is the teacher."""
    return np.asarray(reference_nll) - np.asarray(teacher_nll)


def keep_top(scores, rho):
    """Rows of the ``round(rho N)`` largest scores (N,), at least one, in their original order; of ties the earlier."""
    count = max(1, round(rho * len(scores)))
    return np.sort(np.argsort(-np.asarray(scores), kind="stable")[:count])


def equal_flops_steps(steps, student_parameters, teacher_parameters):
    """Steps of online distillation that cost the FLOPs of ``steps`` without a teacher, at least one.

    Per token a student step costs 6 FLOPs per parameter (forward and backward), a teacher forward 2.
    """
    return max(1, int(steps * 6 * student_parameters / (6 * student_parameters + 2 * teacher_parameters)))


# --- scoring the corpus -----------------------------------------------------------------------------------------------


def per_token(task, sums):
    """Mean token NLL in nats of every training chunk, (N,), from the sums over its tokens (N,)."""
    return sums / scored_tokens(task.split("train").sequences)


def teacher_scores(task):
    """The teacher's forward over the whole corpus, the only time that it is used."""
    sequences = task.split("train").sequences
    task.budget.spend("flops", forward_flops(task.teacher(), sequences))
    return per_token(task, row_nll(task, task.scored_teacher, sequences, task.spec.evaluation.batch_size))


def reference_scores(task, params):
    """Train the reference on its random slice and let it score the whole corpus."""
    total = len(task.split("train"))
    chosen = task.rng("init").choice(total, max(1, round(params.reference_slice * total)), replace=False)
    reference = task.new_student(Net(layers=params.reference_layers, width=params.reference_width))
    loader = task.train_loader(rows=torch.from_numpy(np.sort(chosen)))
    steps = max(1, round(params.reference_steps * task.spec.limits["steps"]))
    task.fit(reference, hard_loss(task), loader=loader, steps=steps, spend="aux_steps", tag="reference")
    return per_token(task, model_nll(task, reference, task.split("train").sequences))


def once(task, key, compute):
    """``compute(task)`` (N,) and its costs by meter: computed once per key, shared by every job that needs it."""

    def make(folder):
        with tempfile.TemporaryDirectory() as scratch:
            apart = type(task)(
                task.spec,
                seed=task.seed,
                method=task.method,
                folder=Path(scratch),
                cache=task.cache,
                device=task.device,
            )
            np.save(folder / "nll.npy", compute(apart))
        (folder / "costs.json").write_text(json.dumps(apart.budget.report()))

    key = {"track": "llm", "data": task.split("train").digest, **key}
    folder = task.cache.get("chunk-nll", key, make)
    return np.load(folder / "nll.npy"), json.loads((folder / "costs.json").read_text())


REFERENCE = ("reference_slice", "reference_steps", "reference_layers", "reference_width")
"""Parameters that decide the reference model."""


def nll_of_teacher(task):
    """Teacher NLL of every chunk, and its costs; the same for all seeds."""
    return once(task, {"teacher": task.spec.teacher_identity()}, teacher_scores)


def nll_of_reference(task, params):
    """Reference NLL of every chunk, and its costs; one reference per seed, whatever student is trained later."""
    settings = {name: getattr(params, name) for name in REFERENCE}
    recipe = task.spec.recipe.model_dump(mode="json")
    steps = task.spec.limits["steps"]
    key = {"reference": settings, "steps": steps, "recipe": recipe, "seed": task.stream("init")}
    return once(task, key, lambda apart: reference_scores(apart, params))


def select(task, params):
    """Rows that the student reads, ascending (K,), and what choosing them cost by meter."""
    total = len(task.split("train"))
    if params.selection == "random":
        return keep_top(task.rng("selection").random(total), params.rho), {}
    if params.selection in ("all", "online_kd"):
        return np.arange(total), {}
    teacher, costs = nll_of_teacher(task)
    if params.selection == "low_perplexity":
        return keep_top(-teacher, params.rho), costs
    reference, more = nll_of_reference(task, params)
    costs = {meter: costs.get(meter, 0.0) + more.get(meter, 0.0) for meter in {*costs, *more}}
    return keep_top(difference(reference, teacher), params.rho), costs


# --- the student ------------------------------------------------------------------------------------------------------


def make_student(task, params):
    """The task's student, or one of the family and tokenizer that are asked for, from scratch."""
    tokenizer = None if params.tokenizer in ("task", task.spec.tokenizer) else task.local_tokenizer(params.tokenizer)
    if params.family == "task" and tokenizer is None and not params.from_scratch:
        return task.student()
    net = task.spec.student
    if params.family != "task":
        if not isinstance(net, Net):
            raise JobError(f"family={params.family!r} needs a task whose student is built from a configuration")
        net = net.model_copy(update={"family": params.family})
    return task.new_student(net if isinstance(net, Net) else None, tokenizer)


def kept_sequences(task, kept, tokenizer):
    """The chosen chunks in their original order as tokens, encoded anew for a student with another tokenizer."""
    split = task.split("train")
    if tokenizer is task.tokenizer:
        return split.sequences.rows(torch.from_numpy(kept))
    return task.kind.encode_rows([split.rows[row] for row in kept], tokenizer)


@hookimpl
def train(task, params):
    kept, costs = select(task, params)
    for meter, amount in costs.items():
        task.budget.spend(meter, amount / params.students)
    student = make_student(task, params)
    if params.selection == "online_kd":
        steps = equal_flops_steps(
            task.budget.remaining("steps"), count_parameters(student), count_parameters(task.teacher())
        )
        return train_with_divergence(task, fkl, kd_ratio=params.kd_ratio, student=student, steps=steps)
    loader = task.loader(kept_sequences(task, kept, task.tokenizer_of(student)))
    task.fit(student, hard_loss(task), loader=loader)
    return student


def describe(task, kept):
    """What was kept: its share by domain, of the injected noise, its difficulty and its diversity."""
    split = task.split("train")
    rows, mask = split.rows, np.zeros(len(split), dtype=bool)
    mask[kept] = True
    sequences = split.sequences.rows(torch.from_numpy(kept))
    tokens = [row[:length] for row, length in zip(sequences.ids.tolist(), sequences.lengths.tolist(), strict=True)]
    facts = {
        "kept_fraction": float(mask.mean()),
        "kept_teacher_nll": float(nll_of_teacher(task)[0][kept].mean()),
        "kept_distinct_2": distinct(tokens, 2),
        "kept_distinct_3": distinct(tokens, 3),
    }
    for domain in sorted({row.domain for row in rows}):
        facts[f"kept_fraction/{domain}"] = float(mask[[row.domain == domain for row in rows]].mean())
    for kind in sorted({row.noise for row in rows} - {""}):
        facts[f"kept_noise/{kind}"] = float(mask[[row.noise == kind for row in rows]].mean())
    noisy = np.array([row.noise != "" for row in rows])
    if noisy.any():
        facts["kept_noise"] = float(mask[noisy].mean())
    return facts


@hookimpl
def evaluate(task, model, params):
    return task.score(model) | describe(task, select(task, params)[0])
