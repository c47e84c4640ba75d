"""m2mKD: Module-to-Module Knowledge Distillation for Modular Transformers (Lo et al., 2024).

A modular network is hard to train end to end, and a monolithic teacher has no module that corresponds to one of its
own. Both are cut into M modules, and a small *meta model* of M blocks, pre-trained and frozen, is what they are put
into. For each module i, independently of all others:

    teacher hybrid = meta[0 .. i-1] -> teacher module i -> meta[i+1 .. M-1]
    student hybrid = meta[0 .. i-1] -> stitch, student module i, stitch -> meta[i+1 .. M-1]
    L = (1 - alpha) CE(student hybrid, y) + alpha KL(teacher hybrid || student hybrid) / C

The first hybrids have their own embedding and the last their own classifier; the features of the meta prefix are
computed once for both; gradients pass through the frozen suffix to the student's module. Then the modules are
assembled, without stitches or with them, and trained end to end by cross-entropy. The divergence is divided by the
number of classes, as in the released code. Students: a vision transformer with routed experts (V-MoE), and latent
states on a sparse graph (after Neural Attentive Circuits).

All steps of the student, of its modules and of the whole, are those of the task's limit; the meta model costs
auxiliary steps. Controls: ``end_to_end`` and ``kd`` give the same network all steps at once, ``meta=random`` leaves the
meta model untrained, and ``no_kd`` is the monolithic student. Evaluation adds how evenly experts are used, the loss at
the assembly, and accuracy of few-shot adaptation where the task has classes that the student never saw.
"""

import json
from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.losses.logits import cross_entropy, kd_kl
from kdbench.tracks.vision.metrics import few_shot_accuracy
from kdbench.tracks.vision.models.hybrid import Section, StitchedPart, cut, prefix, suffix
from kdbench.tracks.vision.models.moe import ModularMoE, importance_loss, usage_entropy
from kdbench.tracks.vision.models.nac import ModularNac
from kdbench.tracks.vision.models.split import pieces
from kdbench.tracks.vision.models.vit import ViT

PAPER = Paper(
    slug="m2mkd",
    title="m2mKD: Module-to-Module Knowledge Distillation for Modular Transformers",
    year=2024,
    authors=[
        "Ka Man Lo",
        "Yiming Liang",
        "Wenyu Du",
        "Yuantao Fan",
        "Zili Wang",
        "Wenhao Huang",
        "Lei Ma",
        "Jie Fu",
    ],
    arxiv="2402.16918",
    url="https://github.com/kamanphoebe/m2mKD",
    track="vision",
    source="code",
    tasks=["homo-vit-vit", "vit-fewclass"],
    requires=["weights"],
    tags=["modular", "mixture-of-experts", "features"],
    claims=[
        Compare(
            metric="top1",
            subject="m2mkd",
            reference={"method": "m2mkd", "params": {"mode": "end_to_end"}},
            tasks=["homo-vit-vit"],
            note="modules that were taught one by one end up better than the same network trained at once",
        ),
        Compare(
            metric="ood_top1",
            subject="m2mkd",
            reference={"method": "m2mkd", "params": {"mode": "end_to_end"}},
            tasks=["homo-vit-vit"],
        ),
    ],
    departures=[
        "two modules of one block, four experts, and the task's steps shared by modules and end-to-end training",
        "teacher modules are parts of the trained teacher; incubating them in the meta model is an option",
        "experts have an importance loss of weight 0.01 in all modes, as of V-MoE",
        "the second student has the sparse graph and the states of neural attentive circuits, not their learned codes",
    ],
)


class M2mkdParams(Params):
    """Mode, form of the student, meta model, shares of the steps."""

    mode: Literal["m2mkd", "end_to_end", "kd"] = Field("m2mkd", description="the paper's, or a control")
    student: Literal["moe", "nac"] = Field("moe", description="experts in every block, or states on a sparse graph")
    modules: int = Field(2, ge=2, le=64, description="modules of teacher, meta model and student")
    blocks: int = Field(1, ge=1, le=64, description="blocks in each module of the student")
    experts: int = Field(4, ge=1, le=1024, description="moe: experts of a block")
    k: int = Field(2, ge=1, le=1024, description="moe: experts that a token goes through")
    balance: float = Field(0.01, ge=0, le=100, description="moe: weight of the importance loss")
    density: float = Field(0.2, ge=0, le=1, description="nac: share of all pairs of states that are joined")
    share: float = Field(0.27, gt=0, lt=0.5, description="part of the steps that each module is trained for")
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the divergence; the cross-entropy has the rest")
    temperature: float = Field(1.0, gt=0, le=100, description="of the divergence")
    keep_stitches: bool = Field(False, description="whether the assembled student keeps the stitches between modules")
    meta: Literal["trained", "random"] = Field("trained", description="whether the meta model is pre-trained")
    meta_steps: int = Field(300, ge=1, le=1_000_000, description="steps of the meta model's pre-training")
    incubate_steps: int = Field(0, ge=0, le=1_000_000, description="steps each teacher module learns in the meta model")
    kd_temperature: float = Field(4.0, gt=0, le=100, description="of the mode kd")
    kd_weight: float = Field(0.9, ge=0, le=1, description="of the divergence in the mode kd")
    shots: int = Field(5, ge=1, le=100, description="images per class of the few-shot adaptation")


# --- networks ---------------------------------------------------------------------------------------------------------


def vits(task):
    """The frozen teacher and the shape of the student. Raises ``UsageError`` unless both are vision transformers."""
    teacher, student = task.teacher(), task.build_student()
    if not isinstance(teacher, ViT) or not isinstance(student, ViT):
        raise UsageError(f"{task.spec.name}: m2mkd takes modules of vision transformers, teacher and student are vit()")
    return teacher, student


def build(task, params, like, stitch=0):
    """A modular student with width and heads of the task's own student; equal weights for one seed."""
    width, heads = like.position.shape[2], like.blocks[0].attn.heads
    common = {"num_classes": task.num_classes, "size": task.spec.data.size, "stitch": stitch}
    depths = [params.blocks] * params.modules
    if params.student == "moe" and params.k > params.experts:
        raise UsageError(f"k is {params.k}; expected at most experts, {params.experts}")
    with task.seeded("init"):
        if params.student == "moe":
            made = ModularMoE(width, heads, depths, experts=params.experts, k=params.k, **common)
        else:
            made = ModularNac(width, heads, depths, density=params.density, **common)
    return made.to(task.device)


# --- training ---------------------------------------------------------------------------------------------------------


def balanced(params, record):
    return {"balance": params.balance * importance_loss(record)} if record and params.balance else {}


def module_loss(task, params, meta, teacher, number):
    """Loss of one student module in the frozen meta model, beside one teacher module."""

    def loss(module, batch):
        record, before = [], prefix(meta, number, batch.x)
        task.budget.spend("teacher_queries", len(batch))
        with torch.no_grad():
            target = suffix(meta, number, teacher(before))
        logits = suffix(meta, number, module(before, record))
        divergence = kd_kl(logits, target, params.temperature) / logits.shape[1]
        return {
            "ce": (1 - params.alpha) * cross_entropy(logits, batch.y),
            "kd": params.alpha * divergence,
            **balanced(params, record),
        }

    return loss


def make_meta(task, params, teacher):
    """The meta model: one block of the teacher's width per module, pre-trained by cross-entropy, frozen."""
    width, heads = teacher.position.shape[2], teacher.blocks[0].attn.heads
    with task.seeded("meta"):
        meta = ViT(width, params.modules, heads, num_classes=task.num_classes, size=task.spec.data.size).to(task.device)
    if params.meta == "trained":
        task.fit(
            meta,
            lambda model, batch: cross_entropy(model(batch.x), batch.y),
            steps=params.meta_steps,
            spend="aux_steps",
            tag="meta",
        )
    return meta.requires_grad_(False).eval()


def teacher_modules(task, params, teacher, meta):
    """The teacher's modules, frozen: its own, or private copies that were trained in the meta model before."""
    chosen = cut(len(teacher.blocks), params.modules)
    if not params.incubate_steps:
        return [Section(teacher, *each) for each in chosen]
    modules = [Section(task.teacher(trainable=True), *each) for each in chosen]
    for number, module in enumerate(modules):

        def loss(module, batch, number=number):
            return cross_entropy(suffix(meta, number, module(prefix(meta, number, batch.x))), batch.y)

        task.fit(module, loss, steps=params.incubate_steps, spend="aux_steps", tag=f"incubate{number}")
        module.requires_grad_(False).eval()
    return modules


def teach_modules(task, params, student, teacher):
    """Train the student's modules one by one, in place; the stitches of each."""
    steps = max(1, round(params.share * task.budget.steps()))
    if steps * params.modules >= task.budget.steps():
        raise UsageError(f"share {params.share} of {params.modules} modules leaves no step to train them end to end")
    network = make_meta(task, params, teacher)
    meta, width = pieces(network), teacher.position.shape[2]
    modules = []
    for number, taught_by in enumerate(teacher_modules(task, params, teacher, meta)):
        with task.seeded(f"stitch{number}"):
            module = StitchedPart(student, number, width).to(task.device)
        student.requires_grad_(False)
        for parameter in student.part_parameters(number):
            parameter.requires_grad_(True)
        loss = module_loss(task, params, meta, taught_by, number)
        task.fit(module, loss, steps=steps, tag=f"module{number}")
        modules.append(module)
    student.requires_grad_(True)
    return modules


@hookimpl
def train(task, params):
    teacher, like = vits(task)
    taught = params.mode == "m2mkd"
    stitch = teacher.position.shape[2] if taught and params.keep_stitches else 0
    student = build(task, params, like, stitch)
    if taught:
        modules = teach_modules(task, params, student, teacher)
        for number in range(len(student.enter)):
            student.leave[number].load_state_dict(modules[number].leave.state_dict())
            student.enter[number].load_state_dict(modules[number + 1].enter.state_dict())
    found = {"assembly_val_nll": task.validate(student)["nll"]}
    task.artifact("assembly.json").write_text(json.dumps(found))

    def loss(model, batch):
        record = []
        logits, weight = model.taps(batch.x, record).logits, params.kd_weight if params.mode == "kd" else 0.0
        losses = {"ce": (1 - weight) * cross_entropy(logits, batch.y), **balanced(params, record)}
        if weight:
            losses["kd"] = weight * kd_kl(logits, task.teacher_logits(batch), params.kd_temperature)
        return losses

    task.fit(student, loss)
    return student


# --- evaluation -------------------------------------------------------------------------------------------------------


@hookimpl
def evaluate(task, model, params):
    found, record, test = json.loads(task.artifact("assembly.json").read_text()), [], task.split("test")
    with torch.no_grad():
        features = model.eval().taps(test.x, record).penult
    if record:
        found["expert_usage_entropy"] = usage_entropy(record, params.k)
    if getattr(task.spec.data.derive, "kind", None) == "fewclass":
        found["fewshot_top1"] = few_shot_accuracy(
            features, test.y, task.spec.data.derive.drop, params.shots, task.generator("episodes")
        )
    return task.score(model) | found
