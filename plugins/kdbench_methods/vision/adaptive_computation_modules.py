"""Adaptive Computation Modules: Granular Conditional Computation for Efficient Inference (Wójcik et al., AAAI 2025).

A trained vision transformer is made to spend as much on a token as the token needs. Its MLPs (``parts``: also the
projections of attention) are replaced by ACMs: N learners of 1/N of the width each, whose first k are summed to
A_k(x), and a gate that chooses k for every token. Three stages:

1. Module-wise distillation. Every ACM gets the *teacher's* input of its module, not what the ACMs before it make, and
   minimises the mean over k = 0..N of MSE(A_k(x), teacher's output). With ``detach`` a learner fits the residual.
2. Gates alone. With e_k = ||A_k(x) - output||_2, more learners are worth it while e_k / e_{k+1} >= ``ratio``: the label
   of a token is 0 where that fails at k = 0, else 1 + the first k at which it fails, N if it never does.
3. Everything, with hard Gumbel-softmax choices: cross-entropy + w |used / full cost - budget| - 0.05 H - 0.05 D. H is
   the entropy of each image's histogram of choices in each ACM, over its maximum; D is twice the mean distance between
   the loads of two images, a load being the mean number of learners over N + 1, as in the released code.

At inference the gate takes its largest output and a learner runs on the tokens that chose it. Evaluation measures
multiply-adds of the executed rows, the accuracy of the same network with a fixed k for all tokens, interpolated at the
cost of the gated one (``gain_over_fixed``), the areas under both curves of accuracy and cost (the gated one traced by
shifting the gates' outputs), and how the load follows the object where the images have a known one.
"""

import json
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import JobError
from kdbench.losses.routing import choice_entropy, gate_labels, load_diversity, used_share
from kdbench.tracks.vision import metrics
from kdbench.tracks.vision.data.shapetex import object_masks
from kdbench.tracks.vision.flops import multiply_adds
from kdbench.tracks.vision.models.acm import AcmViT
from kdbench.tracks.vision.models.vit import PATCH, ViT
from kdbench.training.mixing import mix, one_hot

PAPER = Paper(
    slug="adaptive_computation_modules",
    title="Adaptive Computation Modules: Granular Conditional Computation For Efficient Inference",
    year=2025,
    authors=["Bartosz Wójcik", "Alessio Devoto", "Karol Pustelnik", "Pasquale Minervini", "Simone Scardapane"],
    venue="AAAI 2025",
    arxiv="2312.10193",
    url="https://github.com/bartwojcik/adaptive_computation_modules",
    track="vision",
    source="code",
    tasks=["conditional", "homo-vit-vit", "hetero-vit-rn", "hetero-vit-mixer"],
    requires=["weights", "features"],
    tags=["conditional-computation", "efficiency", "features"],
    claims=[
        Compare(
            metric="gain_over_fixed",
            subject="adaptive_computation_modules",
            reference=0.0,
            tasks=["conditional"],
            note="gated execution beats a fixed number of learners at equal average cost",
        ),
        Compare(
            metric="gain_over_fixed",
            subject={"method": "adaptive_computation_modules", "params": {"budget": 0.75}},
            reference=0.0,
            tasks=["conditional"],
        ),
    ],
    departures=[
        "the learner of the largest index runs: the released loop over learners ends before it",
        "the label is 0 learners where the first one already fails the test; in the released code it is N",
        "gates have a non-linearity between their layers, and are pre-trained by cross-entropy on their logits",
        "hundreds of steps in place of epochs, so larger rates, ten times the budget's weight, no mixing by default",
    ],
)


class AcmParams(Params):
    """Shape of the modules, lengths of the stages, and the terms of the last one."""

    budget: float = Field(0.4, gt=0, le=1, description="share of the ACMs' full cost to be used on average")
    learners: int = Field(4, ge=1, le=64, description="N, per module")
    parts: list[Literal["ffn", "q", "k", "v", "o"]] = Field(
        ["ffn"], min_length=1, description="what is replaced in each block; projections use one learner at least"
    )
    gates: Literal["learned", "fixed"] = Field(
        "learned", description="fixed: the same number of learners for all tokens, the nearest to the budget"
    )
    distill_steps: int = Field(150, ge=0, le=1_000_000, description="of stage 1, beyond the task's; 0 leaves it out")
    distill_lr: float = Field(1e-2, gt=0, le=1, description="peak rate of Adam in stage 1; the paper's is 1e-3")
    detach: bool = Field(False, description="earlier learners are constants for later ones in stage 1")
    gate_steps: int = Field(50, ge=0, le=1_000_000, description="of stage 2, beyond the task's; 0 leaves it out")
    gate_lr: float = Field(1e-2, gt=0, le=1, description="peak learning rate of Adam in stage 2")
    ratio: float = Field(1.2, ge=1, le=100, description="one more learner is worth it if it divides the error by this")
    finetune_lr: float = Field(
        1e-3, gt=0, le=1, description="peak learning rate of Adam in stage 3; the paper's is 1e-4"
    )
    tau: float = Field(0.8, gt=0, le=100, description="temperature of the Gumbel-softmax")
    budget_weight: float = Field(1.0, ge=0, le=1000, description="of the distance to the budget; the paper's is 0.1")
    entropy_weight: float = Field(0.05, ge=0, le=1000, description="of the entropy of choices within an image")
    diversity_weight: float = Field(0.05, ge=0, le=1000, description="of the distance between loads of images")
    mixup: float = Field(
        0.0, ge=0, le=100, description="Beta parameter of mixup in stage 3; 0: none, the paper's is 0.8"
    )
    cutmix: float = Field(0.0, ge=0, le=100, description="the same of cutmix, the paper's is 1; with both, a fair coin")
    gate_hidden: int = Field(16, ge=1, le=4096, description="hidden width of the gates")
    gate_depth: int = Field(3, ge=1, le=16, description="linear layers of the gates")


# --- stages -----------------------------------------------------------------------------------------------------------


def acmized(task, params):
    """The teacher with untrained ACMs. Raises ``JobError`` for a teacher of another family."""
    teacher = task.teacher()
    if not isinstance(teacher, ViT):
        raise JobError(f"{task.spec.name} has a teacher {task.spec.teacher.arch}; adaptive modules need vit(d,L,h)")
    d, layers, heads = (int(number) for number in teacher.arch[4:-1].split(","))
    fixed = max(1, round(params.budget * params.learners)) if params.gates == "fixed" else None
    with task.seeded("acm"):
        model = AcmViT(
            d, layers, heads, num_classes=task.num_classes, size=task.spec.data.size, learners=params.learners,
            parts=params.parts, gate=(params.gate_hidden, params.gate_depth), fixed=fixed,
        )  # fmt: skip
    for acm in model.acms().values():
        acm.gate.tau = params.tau
    model.adopt(teacher)
    return model.to(task.device)


def distill_modules(task, params, model):
    """Stage 1: the learners, each module on the teacher's own inputs and outputs."""
    acms = list(model.acms().values())
    model.requires_grad_(False)
    for acm in acms:
        acm.learn_only("learners")

    def loss(model, batch):
        with torch.no_grad():
            _, seen = model.watched(task.teacher(), batch.x)
        terms = []
        for acm, (x, out) in zip(acms, seen, strict=True):
            terms.append((acm.prefixes(x, detach=params.detach) - out.unsqueeze(-2)).square().mean())
        return torch.stack(terms).mean()

    recipe = {"optimizer": "adam", "lr": params.distill_lr, "weight_decay": 0.0}
    task.fit(model, loss, steps=params.distill_steps, spend="aux_steps", tag="distill", **recipe)


def train_gates(task, params, model):
    """Stage 2: the gates, on what the learners can do; the learners are frozen."""
    acms = list(model.acms().values())
    model.requires_grad_(False)
    for acm in acms:
        acm.learn_only("gate")

    def loss(model, batch):
        terms = []
        with torch.no_grad():
            _, seen = model.watched(task.teacher(), batch.x)
        for acm, (x, out) in zip(acms, seen, strict=True):
            with torch.no_grad():
                errors = (acm.prefixes(x) - out.unsqueeze(-2)).norm(dim=-1)
                labels = (gate_labels(errors, params.ratio) - acm.least).clamp(min=0)
            terms.append(F.cross_entropy(acm.gate.logits(x).float().flatten(0, -2), labels.flatten()))
        return torch.stack(terms).mean()

    recipe = {"optimizer": "adam", "lr": params.gate_lr, "weight_decay": 0.0}
    task.fit(model, loss, steps=params.gate_steps, spend="aux_steps", tag="gates", **recipe)


def finetune(task, params, model):
    """Stage 3: everything, for the labels and the budget."""
    model.requires_grad_(True)
    costs = torch.tensor([float(acm.cost()) for acm in model.acms().values()], device=task.device)

    kinds = [kind for kind in ("mixup", "cutmix") if getattr(params, kind)]
    rng = task.rng("mixing")

    def loss(model, batch):
        x, target = batch.x, one_hot(batch.y, task.num_classes)
        if kinds:
            kind = kinds[int(rng.integers(len(kinds)))]
            mixed = mix(x, batch.y, task.num_classes, rng, alpha=getattr(params, kind), kind=kind)
            x, target = mixed.x, mixed.target
        if params.gates == "fixed":
            return F.cross_entropy(model(x).float(), target)
        logits, choices = model.routed(x)
        used = used_share(choices, costs)
        return {
            "ce": F.cross_entropy(logits.float(), target),
            "budget": params.budget_weight * (used - params.budget).abs(),
            "entropy": -params.entropy_weight * choice_entropy(choices),
            "diversity": -params.diversity_weight * load_diversity(choices),
        }

    if params.gates == "fixed":
        for acm in model.acms().values():
            acm.learn_only("learners")
    recipe = {"optimizer": "adam", "lr": params.finetune_lr, "weight_decay": 0.0}
    task.fit(model, loss, loader=task.train_loader("labeled"), **recipe)
    model.requires_grad_(True)


@hookimpl
def train(task, params):
    model = acmized(task, params)
    if params.distill_steps:
        distill_modules(task, params, model)
    if params.gate_steps and params.gates == "learned":
        train_gates(task, params, model)
    finetune(task, params, model)
    return model


# --- evaluation -------------------------------------------------------------------------------------------------------


def point(task, model, test):
    """Multiply-adds per image, measured, and accuracy."""
    return multiply_adds(model, test.x).total, metrics.accuracy(task.predict(model, test.x), test.y)


def fixed_curve(task, model, test):
    """Points (cost, accuracy) with the same number of learners for every token, from the least to N."""
    was, acms = model.config["fixed"], model.acms().values()
    points = []
    for k in range(min(acm.least for acm in acms), model.config["learners"] + 1):
        model.set_fixed(k)
        points.append(point(task, model, test))
    model.set_fixed(was)
    return points


def gated_curve(task, model, test, tilts=(-8, -4, -2, -1, -0.5, 0, 0.5, 1, 2, 4, 8)):
    """Points (cost, accuracy) as the gates are shifted towards fewer or more learners."""
    gates, points = [acm.gate for acm in model.acms().values()], []
    for tilt in tilts:
        for gate in gates:
            gate.tilt = float(tilt)
        points.append(point(task, model, test))
    for gate in gates:
        gate.tilt = 0.0
    return points


def area(points, low, high):
    """Mean accuracy over costs from low to high, linear between the points, constant outside of them."""
    costs, values = (np.array(column) for column in zip(*sorted(points)))
    grid = np.unique(np.clip(np.concatenate([costs, [low, high]]), low, high))
    heights = np.interp(grid, costs, values)
    return sum((b - a) * (p + q) / 2 for (a, b), (p, q) in zip(pairwise(grid), pairwise(heights))) / (high - low)


def mask_correlation(load, masks):
    """Pearson correlation over all patches of the load (n, patches) and the object's share (n, P, P) of the patch."""
    share = F.avg_pool2d(masks[:, None].float(), PATCH).flatten(1)
    pair = torch.stack([load.flatten().double(), share.flatten().double()])
    return float(torch.corrcoef(pair)[0, 1]) if pair[0].std() > 0 else 0.0


@hookimpl
def evaluate(task, model):
    """Cost and accuracy of the gated network beside the same network with a fixed number of learners."""
    test, acms = task.split("test"), model.acms()
    scores, counted = task.score(model), multiply_adds(model, test.x)
    dense = multiply_adds(task.teacher(), test.x[:64]).total
    fixed = fixed_curve(task, model, test)
    own = {
        "macs": counted.total,
        "macs_share": counted.total / dense,
        "fixed_top1": float(np.interp(counted.total, *zip(*sorted(fixed)))),
        "teacher_top1": metrics.accuracy(task.predict(task.teacher(), test.x), test.y),
    }
    report = {"fixed": fixed}
    if model.config["fixed"] is None:
        with torch.no_grad():
            _, choices = model.eval().routed(test.x)
        counts = (choices * torch.arange(choices.shape[-1], device=choices.device)).sum(-1)
        gated = gated_curve(task, model, test)
        low, high = fixed[0][0], max(cost for cost, _ in (*gated, *fixed))
        costs = torch.tensor([float(acm.cost()) for acm in acms.values()], device=choices.device)
        own |= {
            "gain_over_fixed": scores["top1"] - own["fixed_top1"],
            "curve_area": area(gated, low, high),
            "fixed_curve_area": area(fixed, low, high),
            "used_share": float(used_share(choices.float(), costs)),
            "mean_learners": float(counts.float().mean()),
            "gate_cost_share": sum(counted.modules[f"{name}.gate"] for name in acms) / counted.total,
        }
        report |= {"gated": gated, "learners": dict(zip(acms, counts.float().mean((0, 1)).tolist(), strict=True))}
        if task.spec.data.source == "shapetex" and not task.spec.data.derive:
            meta = {key: values.cpu().numpy() for key, values in test.meta.items()}
            masks = torch.from_numpy(object_masks(meta, task.spec.data.size)).to(choices.device)
            own["load_mask_correlation"] = mask_correlation(counts[:, 1:].float().mean(2), masks)
    task.artifact("curves.json").write_text(json.dumps(report) + "\n")
    return scores | own
