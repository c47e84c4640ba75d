"""CD4LM: a student that sees less learns what its teacher says who sees more, and writes with an adaptive threshold.

Liang et al. 2026. *Discrete-space consistency distillation.* Of each response of length L

    r_s ~ U(0.40, 0.90),   r_t = clip(r_s u, 0.10, 0.60),   u ~ U(0.30, 0.70)

positions are permuted; the first floor(r_s L) of them, at least max(2, ceil(L / 10)), are masked for the student and
the first floor(r_t L) of the *same* permutation for the teacher, so that it sees all that the student sees and more.
Short responses are masked less: r_s <= 0.5 where L < 20, and 2 positions against 1 where L <= 10. With M_s what is
masked for the student,

    loss = lambda tau^2 mean KL(softmax(z_T / tau) || softmax(z_S / tau)) + (1 - lambda) mean CE(z_S, y)   over M_s,

each mean clamped to [0, 5]. lambda is 0.9 for a tenth of the steps, and falls along a cosine to 0.5. At positions of
M_s that the teacher sees, z_T is what its network says there (``raw``), or the token itself (``carry_over``).

*Confidence-adaptive decoding*: of the n predictions of a block that reach gamma the clip(n, 1, most) surest are
committed; until half of the canvas is written, no end is (:class:`~kdbench.tracks.dllm.policies.cad.Adaptive`).
``evaluate`` adds the mean KL between the two at r_s = 0.4, 0.65, 0.9 (r_t = r_s / 2), of student and teacher's weights.
"""

import math
from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.divergences import fkl
from kdbench.tracks.dllm.blocks.masking import canvas_of, nested_masks
from kdbench.tracks.dllm.blocks.objectives import ce_at, mean_at
from kdbench.tracks.dllm.decoders.policy import PolicyDecoder
from kdbench.tracks.dllm.networks.base import canvas_logits, carry_over
from kdbench.tracks.dllm.policies.basic import Threshold
from kdbench.tracks.dllm.policies.cad import Adaptive
from kdbench.training.state import Values

PAPER = Paper(
    slug="cd4lm",
    title="CD4LM: Consistency Distillation and aDaptive Decoding for Diffusion Language Models",
    year=2026,
    authors=[
        "Yihao Liang",
        "Ze Wang",
        "Hao Chen",
        "Ximeng Sun",
        "Jialian Wu",
        "Xiaodong Yu",
        "Jiang Liu",
        "Emad Barsoum",
        "Zicheng Liu",
        "Niraj K. Jha",
    ],
    track="dllm",
    arxiv="2601.02236",
    source="code",
    tasks=["*"],
    requires=["logits", "labels"],
    tags=["consistency", "off-policy", "policy"],
    claims=[
        Compare(
            metric="aup",
            subject="cd4lm",
            reference="threshold",
            tasks=["add", "arith", "squares"],
            note="More right tokens per forward than the teacher with a threshold.",
        ),
        Compare(
            metric="aup",
            subject={"method": "cd4lm", "params": {"decoding": "threshold"}},
            reference="threshold",
            tasks=["squares", "arith"],
            note="The training alone, both sides being decoded with a threshold.",
        ),
        Compare(
            metric="aup",
            subject="cd4lm",
            reference={"method": "cd4lm", "params": {"masks": "independent"}},
            tasks=["squares", "arith"],
            note="Nested masks are better than independent ones.",
        ),
        Compare(
            metric="aup",
            subject={"method": "cd4lm", "params": {"decoding": "threshold"}},
            reference="kd_rand",
            tasks=["squares", "arith"],
            note="A teacher that sees more is better than one that sees the same, at equal steps.",
        ),
    ],
    departures=[
        "a response is the whole canvas with its ends, which a decoder writes, too; the released code masks no padding",
        "independent masks have the loss where the student's are, as nested ones; the released code has it everywhere",
        "the cap of a block is on its forwards: the last one commits all that is left, barred ends included",
    ],
)


class Cd4lmParams(Params):
    """Views, loss and decoding."""

    tau: float = Field(2.0, gt=0, le=100, description="temperature of both distributions")
    start: float = Field(0.9, ge=0, le=1, description="lambda, the weight of consistency, at first")
    end: float = Field(0.5, ge=0, le=1, description="lambda at the end; equal to start: constant (ablation)")
    hold: float = Field(0.1, ge=0, lt=1, description="share of the steps in which lambda stays as at first")
    clamp: float = Field(5.0, gt=0, le=1000, description="upper bound of each of the two means")
    masks: Literal["nested", "independent"] = Field(
        "nested", description="the teacher's masks: part of the student's, or drawn apart (ablation)"
    )
    visible: Literal["raw", "carry_over"] = Field(
        "raw", description="the teacher's target where it sees the token: what its network says there, or that token"
    )
    protect: bool = Field(True, description="short responses are masked less")
    decoding: Literal["cad", "threshold"] = Field(
        "cad", description="adaptive decoding, or all that reaches gamma (ablation)"
    )
    gamma: float = Field(0.8, gt=0, le=1, description="confidence from which a position is committed")
    most: int = Field(4, ge=1, le=4096, description="positions of a forward at most")
    gate: float = Field(0.5, ge=0, le=1, description="share of the canvas that is written before an end may be")
    cap: int | None = Field(None, ge=1, le=4096, description="forwards of a block at most; null: no bound of its own")
    lr: float = Field(3e-4, gt=0, le=1, description="peak of the learning rate")


def mask_sizes(length, rows, generator, protect=True):
    """Masked positions of student and teacher, (rows,) int64 each: the teacher's are at most the student's."""
    ratio = 0.40 + 0.50 * torch.rand(rows, generator=generator)
    kept = (ratio * (0.30 + 0.40 * torch.rand(rows, generator=generator))).clamp(0.10, 0.60)
    if protect and length <= 10:
        student = torch.full((rows,), min(2, length))
        return student, student.clamp_max(1)
    if protect and length < 20:
        ratio = ratio.clamp_max(0.50)
    least = max(2, math.ceil(length / 10))
    student = (ratio * length).long().clamp_min(least).clamp_max(length)
    return student, torch.minimum((kept * length).long(), student)


def views(answer, sizes, generator, masks="nested"):
    """Masks (B, L) bool of student and teacher, of so many positions a row."""
    student, teacher = nested_masks(answer.shape[1], *sizes, generator)
    if masks == "independent":
        _, teacher = nested_masks(answer.shape[1], *sizes, generator)
    return student.to(answer.device), teacher.to(answer.device)


def consistency_weight(step, steps, start=0.9, end=0.5, hold=0.1):
    """lambda after ``step`` of ``steps``: ``start`` for a share ``hold``, then along half a cosine to ``end``."""
    done = (step / steps - hold) / (1 - hold)
    return start if done <= 0 else start + (end - start) * (1 - math.cos(math.pi * min(done, 1.0))) / 2


def dscd_loss(student, teacher, answer, mask, weight, tau=2.0, clamp=5.0):
    """The two terms of the loss, of logits (B, L, V), where the student's ``mask`` (B, L) is."""
    consistency = mean_at(fkl(student, teacher, temperature=tau), mask).clamp(0, clamp)
    reconstruction = mean_at(ce_at(student, answer, mask), mask).clamp(0, clamp)
    return {"consistency": weight * consistency, "reconstruction": (1 - weight) * reconstruction}


@torch.no_grad()
def targets(task, teacher, prompts, canvas, visible):
    """Logits (B, L, V) of the teacher on its own canvas."""
    logits = canvas_logits(teacher, prompts, canvas)
    return carry_over(logits, canvas, task.mask) if visible == "carry_over" else logits


@hookimpl
def train(task, params):
    student, teacher = task.student(), task.teacher()
    steps, draws, progress = task.budget.steps(), task.generator("masks"), Values(done=0)

    def loss(net, batch):
        sizes = mask_sizes(batch.length, len(batch), draws, params.protect)
        mine, its = views(batch.answer, sizes, draws, params.masks)
        said = targets(task, teacher, batch.prompts, canvas_of(batch.answer, its, task.mask), params.visible)
        logits = canvas_logits(net, batch.prompts, canvas_of(batch.answer, mine, task.mask))
        weight = consistency_weight(progress.done, steps, params.start, params.end, params.hold)
        return dscd_loss(logits, said, batch.answer, mine, weight, params.tau, params.clamp)

    def count(step):
        progress.done = step

    task.fit(student, loss, lr=params.lr, on_step=count, state=[progress])
    points = task.spec.evaluation.thresholds
    if params.decoding == "threshold":
        return PolicyDecoder(student, Threshold(params.gamma, points=points))
    return PolicyDecoder(student, Adaptive(params.gamma, params.most, params.gate, params.cap, points))


@torch.no_grad()
def inconsistency(task, net, ratio, visible, draws):
    """Mean KL in nats per token between the teacher's view and a network's, at one ratio, on the test problems."""
    data, teacher, total, count = task.split("test"), task.teacher(), 0.0, 0
    for rows in torch.arange(len(data), device=data.answer.device).split(task.spec.evaluation.batch_size):
        prompts, answer = data.prompts[rows], data.answer[rows]
        sizes = (torch.full((len(rows),), max(1, int(part * task.length))) for part in (ratio, ratio / 2))
        mine, its = views(answer, tuple(sizes), draws)
        said = targets(task, teacher, prompts, canvas_of(answer, its, task.mask), visible)
        values = fkl(canvas_logits(net, prompts, canvas_of(answer, mine, task.mask)), said)
        total, count = total + float(values[mine].sum()), count + int(mine.sum())
    return total / count


@hookimpl
def evaluate(task, model, params):
    found = {}
    for ratio in (0.4, 0.65, 0.9):
        for name, net in (("kl", model.net), ("kl_start", task.teacher())):
            draws = task.generator(f"{name}-{ratio}")
            found[f"{name}_{round(100 * ratio)}"] = inconsistency(task, net, ratio, params.visible, draws)
    return task.score(model) | found
