"""dParallel: the model learns its own responses block by block, and to be certain of them at once.

Chen et al., ICLR 2026. A mask predictor grows certain of its tokens one after the other, even where it would be right
about all of them; that is what parallel decoding waits for. *Certainty-forcing distillation*:

1. Labels are what the model itself writes one token per step; responses that are right are kept.
2. A block of the response is drawn. All before it is visible and all behind it masked, as when it is decoded; inside,
   each token is masked with probability 1/2 (mask m), and in a second view those that m leaves (its complement), so
   that every token of the block is learned once.
3. With H the entropy of softmax(z / T), T = 0.5, and C the masked positions of the block where argmax z is the label,

       loss = CE_m + CE_rest + beta (mean over C_m of H + mean over C_rest of H),   beta = 2,

   CE the mean over masked positions of the block. Where the model is wrong no certainty is asked for.

Decoding commits all predictions of a block that reach a confidence, or (as released) whose entropy is low enough.
``evaluate`` adds the certainty: mean confidence of masked positions when 0, 1/4, 1/2, 3/4 of the text are there, of
student and teacher (also ``certainty.json``).
"""

import json
from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.divergences import entropy, log_softmax
from kdbench.tracks.dllm.blocks.certainty import certainty_curve
from kdbench.tracks.dllm.blocks.masking import block_view
from kdbench.tracks.dllm.blocks.objectives import ce_at, mean_at
from kdbench.tracks.dllm.decoders.policy import PolicyDecoder
from kdbench.tracks.dllm.networks.base import canvas_logits
from kdbench.tracks.dllm.policies.basic import Threshold
from kdbench.tracks.dllm.policies.certain import Certain

PAPER = Paper(
    slug="dparallel",
    title="dParallel: Learnable Parallel Decoding for dLLMs",
    year=2025,
    authors=["Zigeng Chen", "Gongfan Fang", "Xinyin Ma", "Ruonan Yu", "Xinchao Wang"],
    venue="ICLR",
    track="dllm",
    arxiv="2509.26488",
    source="code",
    tasks=["*"],
    requires=["samples", "weights"],
    tags=["self-distillation", "certainty"],
    claims=[
        Compare(
            metric="nfe",
            subject="dparallel",
            reference="threshold",
            tasks=["add", "arith", "squares"],
            note="Fewer forwards at the same threshold than before training.",
        ),
        Compare(
            metric="accuracy",
            subject="dparallel",
            reference="threshold",
            tasks=["add", "arith", "squares"],
            kind="noninferior",
            margin=0.02,
            note="The accuracy is kept.",
        ),
        Compare(
            metric="accuracy",
            subject="dparallel",
            reference={"method": "dparallel", "params": {"certain": "all"}},
            tasks=["squares", "arith"],
            note="Certainty where the model is wrong costs accuracy.",
        ),
        Compare(
            metric="aup",
            subject="dparallel",
            reference={"method": "dparallel", "params": {"weight": 0.0}},
            tasks=["squares", "arith"],
            note="Certainty gives more than training on the same responses alone.",
        ),
    ],
    departures=[
        "the released code may draw a block behind the last one, which gives no loss; here blocks are those there are",
        "every row of a batch has its own block and masks; those of the released code are right for one row alone",
        "the released responses are checked by an answer's last number; here by the task's program",
    ],
)


class DparallelParams(Params):
    """Data, loss and decoding."""

    weight: float = Field(2.0, ge=0, le=100, description="beta, of the entropy; 0: training on own responses alone")
    temperature: float = Field(0.5, gt=0, le=100, description="T of the entropy")
    certain: Literal["correct", "all"] = Field(
        "correct", description="certainty is asked for where the prediction is the label, or everywhere (ablation)"
    )
    ratio: float = Field(0.5, gt=0, lt=1, description="probability that a token of the block is masked")
    complement: bool = Field(True, description="the complementary view is learned as well")
    block: int | None = Field(None, ge=1, le=4096, description="positions of a block in training; null: the task's")
    responses: int = Field(2000, ge=1, le=1000000, description="prompts whose responses are written for training")
    labels: Literal["own", "reference"] = Field(
        "own", description="what the model writes itself, or the reference responses of the same prompts (ablation)"
    )
    keep: Literal["correct", "all"] = Field(
        "correct", description="responses that are right, or all; all, too, where fewer than a batch are right"
    )
    order: Literal["confidence", "entropy"] = Field(
        "confidence",
        description="what decides in decoding: a confidence of gamma or more, or an entropy of nats or less",
    )
    gamma: float = Field(0.9, gt=0, le=1, description="confidence from which a position is committed")
    nats: float = Field(0.5, gt=0, le=100, description="entropy up to which a position is committed")
    lr: float = Field(3e-4, gt=0, le=1, description="peak of the learning rate")


def two_views(answer, block, ratio, generator, mask_id):
    """A block of each row, masked in part and the other way round: two pairs of canvas (B, L) and mask (B, L)."""
    rows, length = answer.shape
    number = torch.randint(-(-length // block), (rows,), generator=generator).to(answer.device)
    inside = (torch.rand(rows, length, generator=generator) < ratio).to(answer.device)
    return block_view(answer, block, number, inside, mask_id), block_view(answer, block, number, ~inside, mask_id)


def uncertainty(logits, labels, mask, temperature=0.5, certain="correct"):
    """Mean entropy in nats where ``mask`` (B, L) is and the prediction is the label (or everywhere); 0 if nowhere."""
    where = mask if certain == "all" else mask & (logits.argmax(dim=-1) == labels)
    return entropy(log_softmax(logits[where], temperature)).sum() / where.sum().clamp_min(1)


def forcing_loss(net, prompts, labels, pairs, params):
    """Cross-entropy and weighted uncertainty, each the sum over pairs of canvas and mask."""
    ce, certainty = [], []
    for canvas, mask in pairs:
        logits = canvas_logits(net, prompts, canvas)
        ce.append(mean_at(ce_at(logits, labels, mask), mask))
        certainty.append(uncertainty(logits, labels, mask, params.temperature, params.certain))
    return {"ce": sum(ce), "certainty": params.weight * sum(certainty)}


def responses(task, params):
    """The teacher's own responses that are kept."""
    written = task.trajectories(params.responses)
    enough = params.keep == "correct" and int(written.correct.sum()) >= min(len(written), task.spec.recipe.batch_size)
    kept = written.only(written.correct) if enough else written
    task.log(0, correct_share=written.correct.double().mean(), kept_share=len(kept) / len(written))
    return kept


@hookimpl
def train(task, params):
    kept, student = responses(task, params), task.student()
    draws, block = task.generator("masks"), params.block or task.block

    def loss(net, batch):
        labels = batch.tokens if params.labels == "own" else batch.answer
        pairs = two_views(labels, block, params.ratio, draws, task.mask)
        return forcing_loss(net, batch.prompts, labels, pairs if params.complement else pairs[:1], params)

    loader = kept.loader(task.spec.recipe.batch_size, task.generator("data"))
    task.fit(student, loss, loader=loader, lr=params.lr)
    if params.order == "entropy":
        return PolicyDecoder(student, Certain(params.nats))
    return PolicyDecoder(student, Threshold(params.gamma, points=task.spec.evaluation.thresholds))


@hookimpl
def evaluate(task, model, params):
    curves = {
        "student": certainty_curve(task, model.net, "test"),
        "teacher": certainty_curve(task, task.teacher(), "test"),
    }
    task.artifact("certainty.json").write_text(json.dumps(curves, indent=1) + "\n")
    found = {
        f"certainty_{100 * part // len(curve)}{'' if who == 'student' else '_teacher'}": value
        for who, curve in curves.items()
        for part, value in enumerate(curve)
    }
    return task.score(model) | found
