"""Return of the Encoder: Maximizing Parameter Efficiency for SLMs.

Elfeki, Liu and Voegele, 2025 (arXiv 2501.16273). A small encoder-decoder learns from a large decoder-only teacher:

1. the student reads the source x in its encoder (about two thirds of the layers) and writes in its decoder: rotary
   positions in both, those of the encoder centred, grouped-query attention, RMSNorm;
2. at every step the student, as it is now, answers the sources of the batch: y ~ q(. | x), at temperature 0.9 from the
   128 most probable tokens;
3. the teacher reads x, padded on the left to E tokens, and y behind it: its logits from E - 1 on are p(. | x, y_<j) for
   token j of y; the student's decoder reads the start token and y without its last token;
4. L = alpha KL(p || q) over the tokens of y + (1 - alpha) CE(y* | x) over those of the ground truth y*.

The mean of the first term is over the tokens of y alone; the released code sums over the padding behind them too. The
parameter-matched student (``architecture="decoder_only"``) is the task's own, which the encoder-decoder gets as many
parameters as by the width of its feed-forward blocks; both begin with the same stages of training.

``evaluate`` adds ROUGE-L of the answers, and what writing costs at the longest input: FLOPs of the first and of a later
token, size of the cache; the meters ``first_token_seconds``, ``token_seconds`` and ``generation_peak_bytes`` are
measured with the cache after a warm-up. The artifact ``writing_cost.json`` has all of it by length of the input, for
this student and for the other architecture. What is not here: images, and devices other than the one that the job has.
"""

import json
from dataclasses import asdict
from typing import Literal

import numpy as np

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.losses.divergences import fkl
from kdbench.losses.tokens import tok_mean
from kdbench.task import count_parameters
from kdbench.tracks.llm.blocks.pairs import causal_logits, split_rows
from kdbench.tracks.llm.evaluate import rouge_l
from kdbench.tracks.llm.latency import costs_by_length
from kdbench.tracks.llm.networks.models import scored_logits
from kdbench.tracks.llm.networks.shapes import Shape, build, matched, split_layers
from kdbench.tracks.llm.spec import Net
from kdbench.training.rollouts import Answered, AnsweredBatches, answering

PAPER = Paper(
    slug="return_of_the_encoder",
    title="Return of the Encoder: Maximizing Parameter Efficiency for SLMs",
    year=2025,
    authors=["Mohamed Elfeki", "Rui Liu", "Chad Voegele"],
    track="llm",
    arxiv="2501.16273",
    source="code",
    tasks=["instruct"],
    requires=["logits"],
    tags=["on-policy", "encoder-decoder", "architecture", "latency"],
    claims=[
        Compare(
            metric="exact_match",
            subject="return_of_the_encoder",
            reference={"method": "return_of_the_encoder", "params": {"alpha": 0.0}},
            tasks=["instruct-passages"],
            note="Distillation on its own answers is better than cross-entropy alone in as many steps.",
        ),
        Compare(
            metric="exact_match",
            subject="return_of_the_encoder",
            reference={"method": "return_of_the_encoder", "params": {"architecture": "decoder_only"}},
            tasks=["instruct-passages"],
            note="With long inputs and short outputs it is better than a decoder of as many parameters.",
        ),
        Compare(
            metric="token_flops",
            subject="return_of_the_encoder",
            reference={"method": "return_of_the_encoder", "params": {"architecture": "decoder_only"}},
            tasks=["instruct-passages"],
            direction="min",
            note="A token behind a long input costs less than in a decoder of as many parameters.",
        ),
        Compare(
            metric="token_seconds",
            subject="return_of_the_encoder",
            reference={"method": "return_of_the_encoder", "params": {"architecture": "decoder_only"}},
            tasks=["instruct-passages"],
            note="The same, measured with the cache.",
        ),
        Compare(
            metric="first_token_seconds",
            subject="return_of_the_encoder",
            reference={"method": "return_of_the_encoder", "params": {"architecture": "decoder_only"}},
            tasks=["instruct-passages"],
            note="The first token behind a long input comes earlier.",
        ),
    ],
    departures=[
        "feed-forward blocks are gated and linear layers have no bias, as in the decoder-only networks of the track",
        "attention is as wide as the network; the released model of 30 layers has 384 of 1024",
        "the student is not a published checkpoint: it begins with the stages of the task's student",
    ],
)


class ReturnOfTheEncoderParams(Params):
    """The student's shape, the two terms of the loss, the sampling, and what is measured."""

    architecture: Literal["encoder_decoder", "decoder_only"] = Field(
        "encoder_decoder", description="decoder_only: the task's student, distilled in the same way"
    )
    encoder_share: float = Field(0.6667, gt=0, lt=1, description="of the layers that are in the encoder")
    layers: int | None = Field(None, ge=2, le=200, description="of both parts; null: as many as the task's student")
    width: int | None = Field(None, ge=8, le=16384, description="of the network; null: that of the task's student")
    heads: int | None = Field(None, ge=1, le=256, description="of attention; null: those of the task's student")
    key_heads: int | None = Field(None, ge=1, le=256, description="of keys and values; null: half of the heads")
    mlp: int | None = Field(
        None, ge=4, le=65536, description="width of the feed-forward blocks; null: as many parameters as the student"
    )
    alpha: float = Field(0.9, ge=0, le=1, description="weight of the divergence; the ground truth has the rest")
    targets: Literal["own", "data"] = Field(
        "own", description="whose tokens the divergence is on: answers of the student, new in every step, or the data"
    )
    sampling_temperature: float = Field(0.9, gt=0, le=10, description="at which the student answers")
    top_k: int = Field(128, ge=0, le=100_000, description="most probable tokens that answers are drawn from; 0: all")
    max_new: int = Field(24, ge=1, le=4096, description="longest answer in tokens")
    steps_fraction: float = Field(0.4, gt=0, le=1, description="share of the task's steps: answers make them dearer")
    longest_input: int = Field(256, ge=32, le=131072, description="tokens of the longest input that is measured")
    written: int = Field(8, ge=3, le=4096, description="tokens of each answer that is measured")
    repeats: int = Field(3, ge=1, le=1000, description="answers that are measured per length of the input")


# --- the student ------------------------------------------------------------------------------------------------------


def shape_of(task, params):
    """Shape of the encoder-decoder: what is given, the rest from the task's student, as many parameters as it has."""
    net = task.spec.student
    known = isinstance(net, Net)
    if not known and None in (params.layers, params.width, params.heads, params.mlp):
        raise UsageError("the task's student is a pretrained model: expected layers, width, heads and mlp")
    heads = params.heads or net.heads
    layers = max(2, net.layers) if params.layers is None else params.layers
    encoder, decoder = split_layers(layers, params.encoder_share)
    shape = Shape(
        encoder_layers=encoder,
        decoder_layers=decoder,
        width=params.width or net.width,
        heads=heads,
        key_heads=params.key_heads or max(1, heads // 2),
        mlp=params.mlp or 8,
        positions=net.positions if known else 2 * params.longest_input,
        tied=net.tied if known else True,  # as the released model
        **({"embedding": net.embedding, "spread": net.spread} if known else {}),
    )
    if shape.width % shape.heads or shape.heads % shape.key_heads:
        raise UsageError(f"heads={shape.heads}: expected a divisor of {shape.width}, and a multiple of key_heads")
    if params.mlp is not None:
        return shape
    return matched(shape, count_parameters(task.new_student()), task.tokenizer, task.teacher_vocabulary)


def make_student(task, params, architecture=None):
    """The student of an architecture (default: that of ``params``), where the task's students begin."""
    if (architecture or params.architecture) == "decoder_only":
        return task.student()
    shape = shape_of(task, params)
    return task.trained_like_student(lambda: build(shape, task.tokenizer, task.teacher_vocabulary), asdict(shape))


# --- distillation -----------------------------------------------------------------------------------------------------


def teacher_on(task, batch):
    """Teacher's logits (N, V) float32 on the scored tokens of ``batch``, by the slice behind the padded source."""
    teacher = task.teacher()
    moved = batch.to(next(teacher.parameters()).device)
    return causal_logits(teacher, split_rows(moved)).to(task.device)


def make_loss(task, params):
    """``alpha KL(p || q) + (1 - alpha) CE`` as a loss of ``fit``; a term whose weight is 0 is left out."""

    def loss(model, batch):
        data, own = (batch.data, batch.own) if isinstance(batch, Answered) else (batch, batch)
        parts = {}
        if params.alpha > 0:
            parts["kd"] = params.alpha * tok_mean(fkl(scored_logits(model, own), teacher_on(task, own)))
        if params.alpha < 1:
            parts["ce"] = (1 - params.alpha) * tok_mean(task.nll(model, data))
        return parts

    return loss


@hookimpl
def train(task, params):
    shape_of(task, params)  # evaluation measures both architectures: a shape that cannot be is refused here
    student = make_student(task, params)
    loader = task.train_loader()
    if params.alpha > 0 and params.targets == "own":
        sampling = {"temperature": params.sampling_temperature, "top_k": params.top_k}
        answer = answering(task, student, max_new=params.max_new, **sampling)
        loader = AnsweredBatches(task, loader, answer)
    task.fit(student, make_loss(task, params), loader=loader, steps=task.budget.steps(params.steps_fraction))
    return student


# --- evaluation -------------------------------------------------------------------------------------------------------


def lengths_up_to(longest):
    """Lengths of inputs from 32 tokens on, each four times the one before, and the longest."""
    return [length for length in (32 * 4**i for i in range(12)) if length < longest] + [longest]


def describe_cost(task, model, params):
    """FLOPs and cache at the longest input; measured times and memory are meters, everything is in the artifact."""
    other = {"encoder_decoder": "decoder_only", "decoder_only": "encoder_decoder"}[params.architecture]
    networks = {params.architecture: model, other: make_student(task, params, other)}
    table = {}
    for name, network in networks.items():
        costs = costs_by_length(
            network,
            lengths_up_to(params.longest_input),
            len(task.tokenizer),
            task.generator("writing"),
            tokens=params.written,
            repeats=params.repeats,
        )
        table[name] = {"parameters": count_parameters(network), "costs": [asdict(cost) for cost in costs]}
    task.artifact("writing_cost.json").write_text(json.dumps({"model": params.architecture, **table}, indent=1))
    mine = table[params.architecture]["costs"][-1]
    task.budget.set("first_token_seconds", mine["first_token_seconds"])
    task.budget.set("token_seconds", mine["token_seconds"])
    task.budget.set("generation_peak_bytes", mine["peak_bytes"])
    return {name: float(mine[name]) for name in ("first_token_flops", "token_flops", "cache_bytes")} | {
        "parameter_ratio": table[params.architecture]["parameters"] / table[other]["parameters"]
    }


def answer_rouge(task, model):
    """Mean over the test items of ROUGE-L of the greedy answer to the item's valid answers, in [0, 1]."""
    items = task.split("test").rows
    texts = task.kind.respond(task, model, items)
    return float(np.mean([rouge_l(item.answers, text) for item, text in zip(items, texts, strict=True)]))


@hookimpl
def evaluate(task, model, params):
    return task.score(model) | {"answer_rouge_l": answer_rouge(task, model)} | describe_cost(task, model, params)
