"""SpecVLM: fast speculative decoding in vision-language models.

Huang, Yang, Liu, Yin, Li, Ren and Barsoum, 2025. A model that reads pictures is decoded speculatively; what is written
stays what the target alone would write.

* EagleVLM: the draft is one decoder layer on the target's features, with the target's frozen embedding and output layer
  (:mod:`kdbench.tracks.decoding.blocks.eagle`). With f the feature that the output layer reads and x the tokens,
  ``f^_{t+1} = layer(W [e(x_{t+1}); f_t])`` and ``q(x_{t+2}) = head(f^_{t+1})``.
* EAGLE-2 trees: proposals grow where the draft is sure, are reranked by cumulative probability and verified in one
  forward with tree attention (:mod:`kdbench.tracks.decoding.decoders.tree`).
* Elastic compressor: the visual prefix of the draft, and of it alone, is pruned, pooled, convolved or resampled; a
  router that sees picture and question chooses for each input (:mod:`kdbench.tracks.decoding.blocks.compression`).
* Online-logit distillation: every step runs the target on the ground truth and stores nothing,

      L = w_cls CE(softmax p, q) + w_reg SmoothL1(f^, f) + price sum_i g_i cost_i

  over the tokens of the answer, the last term with the gates g of the router and the price of each way.

``evaluate`` adds target forwards per token, accepted proposals per forward, the efficiency of the same draft with
chains, visual tokens that are left, FLOPs of the draft's prefill, how often the router goes each way, and how the
accepted length on validation prompts came on from epoch to epoch. Speed on a GPU and benchmarks of real pictures need
pretrained models: ``hf-scenes`` takes a LLaVA by name.
"""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.decoding.blocks.compression import ELASTIC
from kdbench.tracks.decoding.blocks.eagle import Eagle, eagle_loss, parts_of, teach
from kdbench.tracks.decoding.blocks.offline import OfflineTeacher
from kdbench.tracks.decoding.blocks.studies import Course, declines, tree_study
from kdbench.tracks.decoding.decoders.tree import Shape, TreeDecoder

PAPER = Paper(
    slug="specvlm",
    title="SpecVLM: Fast Speculative Decoding in Vision-Language Models",
    year=2025,
    authors=[
        "Haiduo Huang",
        "Fuwei Yang",
        "Zhenhua Liu",
        "Xuanwu Yin",
        "Dong Li",
        "Pengju Ren",
        "Emad Barsoum",
    ],
    track="decoding",
    arxiv="2509.11815",
    source="abstract",
    tasks=["scenes"],
    requires=["logits", "features", "weights"],
    tags=["speculative", "vision-language", "features", "compression"],
    claims=[
        Compare(
            metric="agreement",
            subject="specvlm",
            reference=1.0,
            tasks=["scenes"],
            kind="noninferior",
            note="What is written greedily is, token for token, what the target alone writes.",
        ),
        Compare(
            metric="block_efficiency",
            subject="specvlm",
            reference="ar",
            tasks=["scenes"],
            note="The target is asked less often than by decoding token by token.",
        ),
        Compare(
            metric="block_efficiency",
            subject="specvlm",
            reference={"method": "specvlm", "params": {"proposals": "chain"}},
            tasks=["scenes"],
            note="Dynamic trees are accepted further than chains.",
        ),
        Compare(
            metric="block_efficiency",
            subject="specvlm",
            reference={"method": "specvlm", "params": {"compressor": "none"}},
            tasks=["scenes"],
            kind="ratio",
            margin=0.95,
            note="A compressed visual prefix keeps 95 % of the accepted length.",
        ),
        Compare(
            metric="visual_share",
            subject="specvlm",
            reference=0.3,
            tasks=["scenes"],
            kind="noninferior",
            direction="min",
            note="At most 30 % of the visual tokens are left for the draft.",
        ),
        Compare(
            metric="epochs_declined",
            subject={"method": "specvlm", "params": {"epochs": 5}},
            reference=0.0,
            tasks=["scenes"],
            kind="noninferior",
            direction="min",
            note="Longer online training never shortens the accepted length (one tie within a standard error aside).",
        ),
    ],
    departures=[
        "input of the router, its price and the score of pruning are our reading: the released repository has no code",
        "visual tokens are compressed after the fusion with the target's features, the last point before the layer",
        "the router's branch without visual tokens is a parameter, off by default, so that four primitives compete",
    ],
)


class SpecVlmParams(Params):
    """Draft, compressor, loss and tree."""

    compressor: Literal["elastic", "none", "prune", "pool", "conv", "resampler", "drop"] = Field(
        "elastic",
        description="visual tokens of the draft; elastic: a router chooses, drop: it reads the text alone",
    )
    text_branch: bool = Field(False, description="the router may also leave out all visual tokens")
    share: float = Field(0.25, gt=0, le=1, description="prune: share of the visual tokens that is kept")
    queries: int = Field(8, ge=1, le=1024, description="resampler: visual tokens that are left")
    price: float = Field(0.05, ge=0, le=100, description="lambda, weight of the price of the router's ways")
    gumbel_temperature: float = Field(1.0, gt=0, le=100, description="of the router while it trains")
    w_cls: float = Field(0.1, ge=0, le=100, description="weight of the cross-entropy to the target's distribution")
    w_reg: float = Field(1.0, ge=0, le=100, description="weight of the smooth L1 distance of the features")
    noise: float = Field(0.1, ge=0, le=1, description="uniform noise on the features that the draft reads, as in EAGLE")
    teaching: Literal["online", "offline"] = Field(
        "online", description="offline: the target's outputs are stored in half precision before the draft is trained"
    )
    samples: int = Field(1500, ge=1, le=10_000_000, description="training rows that the draft sees in an epoch")
    epochs: int = Field(3, ge=1, le=100, description="passes over them, as far as the task's steps go")
    proposals: Literal["tree", "chain"] = Field("tree", description="what the draft proposes in a round")
    depth: int = Field(4, ge=1, le=32, description="levels of a tree, tokens of a chain")
    breadth: int = Field(4, ge=1, le=64, description="nodes that are expanded on each level, and children of each")
    size: int = Field(16, ge=1, le=1024, description="nodes that are left for the target after reranking")


def shape_of(params):
    """How the draft proposes."""
    if params.proposals == "chain":
        return Shape(depth=params.depth, breadth=1, size=params.depth, drawn=True)
    return Shape(depth=params.depth, breadth=params.breadth, size=params.size)


def ways_of(params):
    """Names of the ways that visual tokens may go."""
    if params.compressor != "elastic":
        return (params.compressor,)
    return (*ELASTIC, "drop") if params.text_branch else ELASTIC


@hookimpl
def train(task, params):
    target = task.teacher()
    options = {"share": params.share, "queries": params.queries, "temperature": params.gumbel_temperature}
    with task.seeded("init"):
        draft = Eagle(target, ways_of(params), **options).to(task.device)
    rows = torch.arange(min(params.samples, len(task.split("train"))))
    loader = task.train_loader(rows=rows)
    steps = int(min(task.budget.remaining("steps"), params.epochs * len(loader)))
    _, head = parts_of(target)
    generator = task.generator("noise")
    decoder = TreeDecoder(draft, shape_of(params))
    course = Course(task, decoder)

    def queried(count):
        task.budget.spend("teacher_queries", count)

    def online(batch):
        queried(len(batch))
        return teach(target, batch)

    with ExitStack() as stack:
        taught = online
        if params.teaching == "offline":
            folder = Path(stack.enter_context(TemporaryDirectory(dir=task.folder)))
            size = task.spec.recipe.batch_size
            taught = OfflineTeacher(target, loader.sequences, folder, size, task.device, queried)
            task.budget.spend("stored_bytes", taught.bytes)

        def loss(model, batch):
            weights = {"w_cls": params.w_cls, "w_reg": params.w_reg, "noise": params.noise}
            losses, read = eagle_loss(model, head, batch, taught(batch), generator=generator, **weights)
            if params.compressor == "elastic":
                losses["price"] = params.price * read.price
            return losses

        def on_step(step):
            if step % len(loader) == 0 or step == steps:
                course.measure(step)

        task.fit(draft, loss, loader=loader, steps=steps, on_step=on_step, state=[course])
    decoder.facts = {"course": course.efficiencies, "steps": steps}
    return decoder


@hookimpl
def evaluate(task, model):
    scores = task.score(model)
    course = model.facts["course"]
    scores |= tree_study(task, model)
    scores |= {f"epoch_{number}": float(np.mean(values)) for number, values in enumerate(course, 1)}
    return scores | {"epochs_declined": float(declines(course))}
