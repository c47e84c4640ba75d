"""Knowledge Distillation via Token-level Relationship Graph (Zhang, Liu and He, 2023).

Relations between whole images lose what happens inside of them, and suffer where classes are rare. Here the nodes of
the graph are tokens: patches of a transformer, positions of the penultimate stage of a convolutional network. Three
terms join ordinary distillation, L = L_kd + a L_inner + b L_local + g L_global:

    L_inner   MSE of softmax(F F^T / sqrt(D)) over the tokens of one image
    L_local   KL of row softmaxes of A_ij = exp(-|t_i - t_j|^2 / (2 sigma)), j among the k nearest tokens of i, else 0
    L_global  InfoNCE of linearly projected student tokens: the same token of the teacher against all others

For the last two, m tokens are drawn from each image, at the same positions for both networks, and pooled over the
batch: neighbours come from other images, too. The temperature of L_global falls during training, from coarse to fine.
Grids of different sizes are averaged to the smaller one.

Evaluation adds how many nearest neighbours the networks agree on, the linear CKA of their tokens, and the
multiply-adds of the three terms relative to the student's. The paper's larger batches are the task's choice.
"""

from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.contrastive import info_nce
from kdbench.losses.graphs import contextual, gather_tokens, knn_graph, local_preserving, nearest, neighbour_overlap
from kdbench.losses.logits import cross_entropy, kd_kl
from kdbench.tracks.vision.flops import multiply_adds
from kdbench.tracks.vision.metrics import linear_cka
from kdbench.tracks.vision.models import to_tokens
from kdbench.training.projectors import as_map, projector, resize
from kdbench.training.schedules import CosineRamp
from kdbench.training.state import Values

PAPER = Paper(
    slug="token_relationship_graph",
    title="Knowledge Distillation via Token-level Relationship Graph",
    year=2023,
    authors=["Shuoxi Zhang", "Hanpeng Liu", "Kun He"],
    arxiv="2306.12442",
    track="vision",
    source="abstract",
    tasks=["classify", "ensemble", "hetero", "longtail", "noisy", "mismatch", "multidomain"],
    requires=["logits", "features"],
    tags=["features", "relations", "graph", "contrastive"],
    claims=[
        Compare(
            metric="tail_top1",
            subject="token_relationship_graph",
            reference="rkd",
            tasks=["longtail"],
            note="relations between tokens help rare classes more than relations between images",
        ),
        Compare(metric="top1", subject="token_relationship_graph", reference="kd", tasks=["longtail", "longtail-10"]),
        Compare(
            metric="top1",
            subject="token_relationship_graph",
            reference={
                "method": "token_relationship_graph",
                "params": {"w_inner": 0.0, "w_local": 0.0, "w_global": 0.0},
            },
            tasks=["shapetex"],
            note="the three terms add to the ordinary distillation that they are joined with",
        ),
    ],
    departures=[
        "written from the paper's equations as summarised in public: sampling sizes and weights are our reading",
        "both graphs have the teacher's neighbours, so that their supports match; neighbours=own is the other reading",
        "the local divergence has the teacher's distribution first; direction=student is the order of the summary",
        "terms are means over tokens, divided by their value in the first step, so that weights of 1 are comparable",
        "the local term weighs 0.1: at 1 it is too steep for the learning rate, seen on validation data",
    ],
)


class TokenRelationshipGraphParams(Params):
    """Weights of the terms, size of the graph, schedule of the temperature."""

    w_inner: float = Field(1.0, ge=0, le=1e4, description="weight of the context within an image")
    w_local: float = Field(0.1, ge=0, le=1e4, description="weight of the neighbourhoods across the batch")
    w_global: float = Field(1.0, ge=0, le=1e4, description="weight of the contrast of all tokens")
    unit: bool = Field(True, description="divide each of the three terms by its value in the first step")
    tokens: int = Field(6, ge=1, le=4096, description="tokens drawn from each image; all, where it has fewer")
    k: int = Field(8, ge=1, le=4096, description="neighbours of a token; all others, where there are fewer")
    sigma: float | None = Field(
        None, gt=0, description="width of the kernel in squared feature units; null: median squared distance"
    )
    neighbours: Literal["teacher", "own"] = Field("teacher", description="whose nearest tokens the student's graph has")
    direction: Literal["teacher", "student"] = Field(
        "teacher", description="whose distribution comes first in the local divergence"
    )
    tau_start: float = Field(0.5, gt=0, le=100, description="temperature of the contrast in the first step")
    tau_end: float = Field(0.07, gt=0, le=100, description="temperature of the contrast at the end, along a cosine")
    stage: int = Field(2, ge=1, le=100, description="stage whose tokens are related, counted from the last")
    temperature: float = Field(4.0, gt=0, le=100, description="of ordinary distillation")
    weight: float = Field(0.9, ge=0, le=1, description="of its divergence; the cross-entropy has the rest")


def tokens_of(mine, theirs, stage):
    """Tokens (B, N, D) of a stage of both networks on the grid that is the smaller one; networks have their own D."""
    maps = [as_map(taps.stages[max(0, len(taps.stages) - stage)]) for taps in (mine, theirs)]
    side = min(each.shape[-1] for each in maps)
    return [to_tokens(resize(each, side)) for each in maps]


def draw(tokens, count, generator):
    """(B, m) int64: different positions for each image, m = min(count, N)."""
    order = torch.rand(tokens.shape[:2], generator=generator).argsort(1)
    return order[:, :count].to(tokens.device)


def relations(mine, theirs, params, project, tau, generator):
    """The named terms whose weight is not 0, from tokens (B, N, D_s) and (B, N, D_t)."""
    terms = {}
    if params.w_inner:
        terms["inner"] = contextual(mine, theirs)
    if params.w_local or params.w_global:
        positions = draw(mine, params.tokens, generator)
        mine, theirs = gather_tokens(mine, positions), gather_tokens(theirs.detach(), positions)
    if params.w_local:
        around = nearest(theirs, params.k)
        own = around if params.neighbours == "teacher" else nearest(mine, params.k)
        graphs = knn_graph(mine, own, params.sigma), knn_graph(theirs, around, params.sigma)
        terms["local"] = local_preserving(*graphs, reverse=params.direction == "student")
    if params.w_global:
        terms["global"] = info_nce(project(mine), theirs, tau)
    return terms


def make_projector(task, student, params):
    """The linear map from the student's token width to the teacher's."""
    batch = next(iter(task.train_loader()))
    with torch.no_grad():
        mine, theirs = tokens_of(student.eval().taps(batch.x), task.teacher_taps(batch), params.stage)
    with task.seeded("projector"):
        return projector("linear", mine.shape[-1], theirs.shape[-1]).to(task.device)


@hookimpl
def train(task, params):
    student, cooling = task.student(), CosineRamp(task.budget.steps(), 1.0)
    weights = {"inner": params.w_inner, "local": params.w_local, "global": params.w_global}
    related = any(weights.values())
    project = make_projector(task, student, params) if params.w_global else None
    generator, first = task.generator("tokens"), Values(sizes={})

    def loss(model, batch):
        taps = model.taps(batch.x)
        theirs = task.teacher_taps(batch) if related else None
        teacher = theirs.logits if related else task.teacher_logits(batch)
        losses = {
            "ce": (1 - params.weight) * cross_entropy(taps.logits, batch.y),
            "kd": params.weight * kd_kl(taps.logits, teacher, params.temperature),
        }
        if related:
            tau = params.tau_start + cooling.value * (params.tau_end - params.tau_start)
            terms = relations(*tokens_of(taps, theirs, params.stage), params, project, tau, generator)
            if params.unit and not first.sizes:
                first.sizes = {name: size_of(term) for name, term in terms.items()}
            losses |= {name: weights[name] * term / first.sizes.get(name, 1.0) for name, term in terms.items()}
        return losses

    task.fit(student, loss, modules=[project] if project else [], on_step=cooling, state=[cooling, first])
    return student


def size_of(term):
    """What a term is divided by: its value, or 1 where there is nothing to learn."""
    value = float(term.detach())
    return value if value > 1e-8 else 1.0


@torch.no_grad()
def graph_report(task, model, params, images=200):
    """Agreement of the two token graphs on the first test images, and what the terms cost beside the student."""
    x = task.split("test").x[:images]
    mine, theirs = tokens_of(model.eval().taps(x), task.teacher().taps(x), params.stage)
    generator = task.generator("evaluated tokens")
    positions = draw(mine, params.tokens, generator)
    pooled = gather_tokens(mine, positions), gather_tokens(theirs, positions)
    size = min(task.spec.recipe.batch_size, len(x))
    matrix = x.new_zeros(mine.shape[-1], theirs.shape[-1])
    with FlopCounterMode(display=False) as counter:
        relations(mine[:size], theirs[:size], params, lambda tokens: tokens @ matrix, params.tau_end, generator)
    return {
        "neighbour_overlap": neighbour_overlap(*pooled, params.k),
        "token_cka": linear_cka(mine.flatten(0, 1), theirs.flatten(0, 1)),
        "graph_cost": counter.get_total_flops() / 2 / size / multiply_adds(model, x[:1]).total,
    }


@hookimpl
def evaluate(task, model, params):
    return task.score(model) | graph_report(task, model, params)
