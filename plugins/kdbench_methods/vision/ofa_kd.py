"""One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation (Hao et al., NeurIPS 2023).

Intermediate features of different families (convolutions, attention, MLPs) live in different spaces, logits do not.
So exit branches project the student's stages into the logit space, and every branch learns from the teacher's *final*
logits (section 3.2); branches are dropped after training. The loss enhances the target class (section 3.3, equation 5):

    L_ofa = - sum_k [ (p_k + m_k)^eps - m_k ] log s_k        p: teacher, s: student or branch, m: one-hot label
    L = CE(z, y) + w_kd L_ofa(final head, eps_last) + w_ofa sum_branches L_ofa(branch, eps_stage)

Convolutional branches are separable stride-2 blocks, token branches merge patches and apply transformer blocks; the
earlier the stage, the deeper. Evaluation adds the branches' accuracies on the validation data and the linear CKA of all
pairs of student and teacher stages.
"""

import json

import torch
from torch import nn

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.losses.logits import cross_entropy, hard_labels, ofa
from kdbench.tracks.vision.metrics import linear_cka
from kdbench.training.branches import exit_branch

PAPER = Paper(
    slug="ofa_kd",
    title="One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
    year=2023,
    authors=["Zhiwei Hao", "Jianyuan Guo", "Kai Han", "Yehui Tang", "Han Hu", "Yunhe Wang", "Chang Xu"],
    venue="NeurIPS 2023",
    arxiv="2310.19444",
    url="https://github.com/Hao840/OFAKD",
    track="vision",
    source="code",
    tasks=["classify", "ensemble", "hetero", "longtail", "noisy", "mismatch", "multidomain", "webly"],
    requires=["logits"],
    tags=["logits", "heterogeneous", "exit-branches"],
    claims=[
        Compare(
            metric="top1",
            subject="ofa_kd",
            reference="fitnet",
            tasks=[
                "hetero-rn-vit",
                "hetero-vit-rn",
                "homo-vit-vit",
                "vit-fewclass",
                "hetero-digits-rn-vit",
                "hetero-pictures-cnn-vit",
            ],
            note="logit-space branches beat feature matching where the two networks are of different families",
        )
    ],
    departures=[
        "three stages instead of four: a branch has as many blocks as there are stages after its own",
        "the track's recipe in place of 300 epochs with mixup and cutmix; label smoothing 0.1 is kept",
    ],
)


class OfaParams(Params):
    """Which stages have branches, and the shape and weight of the loss."""

    stages: list[int] = Field([], description="stages with a branch, from 1; empty: all")
    eps: list[float] = Field(
        [1.0], min_length=1, description="exponents: one for all, or one per branch and a last one for the final head"
    )
    temperature: float = Field(1.0, gt=0, le=100, description="softens both networks' distributions")
    w_kd: float = Field(1.0, ge=0, description="weight of the loss of the final head")
    w_ofa: float = Field(1.0, ge=0, description="weight of the summed losses of the branches")
    smoothing: float = Field(0.1, ge=0, lt=1, description="label smoothing of the cross-entropy")


def exponents(eps, branches):
    """One exponent per branch, and the final head's. Raises ``UsageError`` where the number does not fit."""
    if len(eps) == 1:
        return eps * branches, eps[0]
    if len(eps) != branches + 1:
        raise UsageError(
            f"eps has {len(eps)} values; expected 1, or {branches} for the branches and 1 for the final head"
        )
    return eps[:-1], eps[-1]


def stage_of(taps, k):
    """Stage ``k`` (from 1), with the class token before the patches where the network has one."""
    stage = taps.stages[k - 1]
    return torch.cat([taps.cls[k - 1].unsqueeze(1), stage], 1) if taps.cls else stage


def make_branches(task, student, stages):
    """One exit branch per chosen stage (from 1), sized by one forward pass that leaves the student unchanged."""
    batch = next(iter(task.train_loader()))
    with torch.no_grad():
        mine = student.eval().taps(batch.x)
        width = max(mine.penult.shape[1], task.teacher().head().in_features)
    total = len(mine.stages)
    unknown = [stage for stage in stages if not 1 <= stage <= total]
    if unknown:
        raise UsageError(f"stages {unknown} do not exist; the student has the stages 1 to {total}")
    chosen = stages or list(range(1, total + 1))
    with task.seeded("branches"):
        branches = [exit_branch(stage_of(mine, k), total - k, width, task.num_classes) for k in chosen]
    return chosen, nn.ModuleList(branches).to(task.device)


@hookimpl
def train(task, params):
    student = task.student()
    stages, branches = make_branches(task, student, params.stages)
    eps_stages, eps_last = exponents(params.eps, len(stages))

    def loss(model, batch):
        taps, teacher = model.taps(batch.x), task.teacher_logits(batch)
        labels = hard_labels(batch.y, teacher)
        exits = [
            ofa(branch(stage_of(taps, k)), teacher, labels, eps=eps, temperature=params.temperature)
            for k, branch, eps in zip(stages, branches, eps_stages, strict=True)
        ]
        final = ofa(taps.logits, teacher, labels, eps=eps_last, temperature=params.temperature)
        return {
            "ce": cross_entropy(taps.logits, batch.y, smoothing=params.smoothing),
            "ofa_final": params.w_kd * final,
            "ofa_branches": params.w_ofa * torch.stack(exits).sum(),
        }

    task.fit(student, loss, modules=[branches])
    task.artifact("branches.json").write_text(json.dumps(branch_accuracies(task, student, stages, branches)))
    return student


@torch.no_grad()
def branch_accuracies(task, student, stages, branches):
    """Top-1 on the validation data of each branch."""
    right, val = dict.fromkeys(stages, 0), task.split("val")
    student.eval(), branches.eval()
    for batch in val.batches(500):
        taps = student.taps(batch.x)
        for k, branch in zip(stages, branches, strict=True):
            right[k] += int((branch(stage_of(taps, k)).argmax(1) == batch.y).sum())
    return {f"branch{k}_val_top1": right[k] / len(val) for k in stages}


@torch.no_grad()
def cka_heatmap(task, model, images=300):
    """Linear CKA of all pairs of stages on the first test images: rows are the student's, columns the teacher's."""
    x = task.split("test").x[:images]
    mine, theirs = model.eval().taps(x).stages, task.teacher().taps(x).stages
    return [[linear_cka(a, b) for b in theirs] for a in mine]


@hookimpl
def evaluate(task, model):
    heatmap = cka_heatmap(task, model)
    task.artifact("cka.json").write_text(
        json.dumps({"rows": "student stages", "columns": "teacher stages", "cka": heatmap})
    )
    flat = [value for row in heatmap for value in row]
    branches = json.loads(task.artifact("branches.json").read_text())
    return task.score(model) | branches | {"cka_mean": sum(flat) / len(flat), "cka_last": heatmap[-1][-1]}
