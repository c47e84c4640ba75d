"""Distribution Shift Matters for Knowledge Distillation with Webly Collected Images (Tang et al., ICCV 2023).

The teacher's own images are gone; there is a pool of images from elsewhere, unlabelled, shifted, in part of no known
class. Knowledge distillation between different distributions (KD3) has three parts:

1. Dynamic instance selection. With c(x) = (p_t(x) + p_s(x)) / 2 an image is kept where max_k c reaches the mean of
   max_k c over the pool's images of the same predicted class. It is repeated as the student matures.
2. Classifier sharing and weighted feature alignment. Behind the student's backbone come a projector to the teacher's
   width and a frozen copy of the teacher's classifier; L_feat = mean_x w(x) |g_s(x) - g_t(x)|^2 / D with w = max_k c
   over its mean in the batch, g the input of the classifier, D wide.
3. MixDistribution. Feature maps F of a stage get another style: with mean mu and deviation sig of each channel, a
   permutation of the batch and lam ~ Beta(0.1, 0.1) per image,

       F' = (lam sig + (1 - lam) sig_perm) (F - mu) / sig + lam mu + (1 - lam) mu_perm

   and a small random change of the mixed statistics. InfoNCE brings g(x) and g'(x) together.

L = T^2 KL(p_t || p_s) + a L_feat + b L_con on what is selected; the classifier sees the images as they are, and both
versions are one batch from the mixed stage on. Statistics are constants, as in MixStyle. ``selection: teacher`` selects
once by p_t alone; ``selection: none``, ``share: false`` (the same network with a classifier of its own), ``feature: 0``
and ``contrast: 0`` are the ablations. Ordinary distillation on the original images is the task ``shapetex``.

Evaluation adds the share of the pool that is selected, how much of it is of known classes (first and last time) and
the linear CKA of the student's and the teacher's features. The paper's web-scale pools cannot be had offline.
"""

import json
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.contrastive import info_nce
from kdbench.losses.logits import kd_kl
from kdbench.tracks.vision.batches import Selected
from kdbench.tracks.vision.metrics import linear_cka
from kdbench.tracks.vision.models.shared_head import SharedHead
from kdbench.training.state import Values

PAPER = Paper(
    slug="kd3",
    title="Distribution Shift Matters for Knowledge Distillation with Webly Collected Images",
    year=2023,
    authors=["Jialiang Tang", "Shuo Chen", "Gang Niu", "Masashi Sugiyama", "Chen Gong"],
    venue="ICCV 2023",
    arxiv="2307.11469",
    track="vision",
    source="abstract",
    tasks=["webly", "classify"],
    requires=["logits", "features", "weights"],
    tags=["data-free", "data-selection", "features", "contrastive"],
    claims=[
        Compare(
            metric="top1",
            subject="kd3",
            reference="kd",
            tasks=["webly"],
            note="selection and sharing beat ordinary distillation on the whole pool",
        ),
        Compare(
            metric="top1",
            subject={"method": "kd3", "params": {"share": False, "feature": 0.0}},
            reference={"method": "kd3", "params": {"selection": "none"}},
            tasks=["webly"],
            note="of the three ablations removing the selection costs the most: more than removing the sharing",
        ),
        Compare(
            metric="top1",
            subject={"method": "kd3", "params": {"contrast": 0.0}},
            reference={"method": "kd3", "params": {"selection": "none"}},
            tasks=["webly"],
            note="of the three ablations removing the selection costs the most: more than removing MixDistribution",
        ),
    ],
    departures=[
        "thresholds, weights, the perturbation of styles and the constants are our reading of a summary",
        "the squared distance of features is divided by their width, so that a does not depend on it",
    ],
)


class Kd3Params(Params):
    """Selection, sharing, alignment and mixing."""

    selection: Literal["dynamic", "teacher", "none"] = Field(
        "dynamic", description="by both networks again and again, by the teacher once, or the whole pool"
    )
    selections: int = Field(6, ge=1, le=1000, description="times that images are selected during training")
    share: bool = Field(True, description="the teacher's classifier, copied and frozen; else one that is learned")
    projection: Literal["linear", "mlp"] = Field("linear", description="from the student's to the teacher's width")
    temperature: float = Field(4.0, gt=0, le=100, description="softens both networks' distributions")
    feature: float = Field(1.0, ge=0, description="a, weight of the feature alignment")
    contrast: float = Field(0.1, ge=0, description="b, weight of the contrast; 0: no MixDistribution")
    contrast_temperature: float = Field(0.5, gt=0, le=10, description="of InfoNCE")
    stage: int = Field(1, ge=1, le=8, description="stage of the student whose output is mixed, from 1")
    beta: float = Field(0.1, gt=0, le=10, description="both parameters of lam's Beta distribution")
    perturbation: float = Field(0.1, ge=0, le=1, description="relative deviation of the change of mixed statistics")


# --- selection --------------------------------------------------------------------------------------------------------


def keep(confidence):
    """(N,) mask of posteriors (N, C) whose largest entry reaches the mean of those with the same predicted class."""
    top, predicted = confidence.double().max(1)
    count = torch.zeros(confidence.shape[1], dtype=top.dtype, device=top.device)
    total = count.clone().index_add_(0, predicted, top)
    count.index_add_(0, predicted, torch.ones_like(top))
    mean = total / count.clamp(min=1)
    return top >= mean[predicted] - 1e-12  # all of a class whose images are alike


def select(task, params, posteriors, student=None):
    """(N,) mask of the pool; by the teacher's posteriors (N, C) alone without a student."""
    if params.selection == "none":
        return torch.ones(len(posteriors), dtype=torch.bool, device=posteriors.device)
    if student is None:
        return keep(posteriors)
    return keep((posteriors + F.softmax(task.predict(student, task.split("train").x), -1)) / 2)


# --- mixing -----------------------------------------------------------------------------------------------------------


def mix_distribution(features, lam, order, noise, eps=1e-6):
    """Feature maps (B, C, H, W) with statistics mixed by lam (B,) with those of the images ``order`` (B,).

    ``noise`` (2, B, C) are relative changes of the mixed deviation, and of the mean in units of that deviation.
    """
    mu, sig = features.mean((2, 3)).detach(), (features.var((2, 3), correction=0) + eps).sqrt().detach()
    lam = lam[:, None]
    mixed_sig = lam * sig + (1 - lam) * sig[order]
    mixed_mu = lam * mu + (1 - lam) * mu[order] + noise[1] * mixed_sig
    mixed_sig = mixed_sig * (1 + noise[0])
    return (
        mixed_sig[..., None, None] * (features - mu[..., None, None]) / sig[..., None, None] + mixed_mu[..., None, None]
    )


def mixer(task, params):
    """A function that draws lam, partners and noise, and mixes."""
    generator, rng = task.generator("mix"), task.rng("beta")

    def change(features):
        b, c = features.shape[:2]
        lam = torch.from_numpy(rng.beta(params.beta, params.beta, b)).to(features)
        order = torch.randperm(b, generator=generator).to(features.device)
        noise = params.perturbation * torch.randn(2, b, c, generator=generator).to(features)
        return mix_distribution(features, lam, order, noise)

    return change


# --- training ---------------------------------------------------------------------------------------------------------


def make_student(task, params):
    """The task's student behind a projector and the teacher's classifier."""
    head = task.teacher().head()
    with task.seeded("projector"):
        student = SharedHead(
            task.spec.student.arch,
            head.in_features,
            params.projection,
            num_classes=task.num_classes,
            size=task.spec.data.size,
        ).to(task.device)
    student.start_from(task.student())
    if params.share:
        student.share(head)
    return student


def alignment(student, teacher, confidence):
    """mean_x w(x) |g_s - g_t|^2 / D of features (B, D), w the confidences (B,) over their mean; scalar."""
    weight = confidence / confidence.mean()
    return (weight * (student.float() - teacher).square().mean(1)).mean()


def kd3_loss(task, params, features):
    """The loss of a batch; ``features`` (N, D) are the teacher's of all images of the pool."""
    change = mixer(task, params)

    def loss(model, batch):
        taps = model.twin_taps(batch.x, params.stage, change) if params.contrast else model.taps(batch.x)
        size = len(batch)
        logits, g, teacher = taps.logits[:size], taps.penult[:size], task.teacher_logits(batch)
        terms = {"kd": kd_kl(logits, teacher, params.temperature)}
        if params.feature:
            target = task.teacher_taps(batch).penult if batch.augmented else features[batch.index]
            combined = (F.softmax(teacher, -1) + F.softmax(logits.detach().float(), -1)) / 2
            terms["feature"] = params.feature * alignment(g, target, combined.amax(1))
        if params.contrast:
            terms["contrast"] = params.contrast * info_nce(g, taps.penult[size:], params.contrast_temperature)
        return terms

    return loss


@hookimpl
def train(task, params):
    pool, student = task.split("train"), make_student(task, params)
    stored = [task.teacher_taps(batch) for batch in pool.batches(500)]
    features = torch.cat([taps.penult for taps in stored])
    posteriors = F.softmax(torch.cat([taps.logits for taps in stored]).float(), -1)
    dynamic, total = params.selection == "dynamic", task.budget.steps()
    every = max(1, total // params.selections)
    first = select(task, params, posteriors, student if dynamic else None)
    history = Values(masks=[first])
    loader = Selected(pool, task.spec.recipe.batch_size, task.generator("data"), augment=task.spec.augment == "roll")
    loader.choose(first.nonzero().flatten())

    def reselect(step):
        if dynamic and step % every == 0 and step < total:
            mask = select(task, params, posteriors, student)
            loader.choose(mask.nonzero().flatten())
            history.masks = [*history.masks, mask]

    task.fit(student, kd3_loss(task, params, features), loader=loader, on_step=reselect, state=[history])
    masks = torch.stack(history.masks).to(torch.uint8).cpu()
    save_file({"masks": masks}, task.artifact("selection.safetensors"))
    return student


@hookimpl
def evaluate(task, model):
    """The selections against the hidden classes of the pool, and the alignment of features on the test images."""
    masks = load_file(task.artifact("selection.safetensors"))["masks"].bool()
    known = task.truth("train").cpu() >= 0
    share = [float(mask.double().mean()) for mask in masks]
    precision = [float(known[mask].double().mean()) for mask in masks]
    changed = [float((a != b).double().mean()) for a, b in pairwise(masks)]
    table = {"selected_share": share, "known_among_selected": precision, "changed_share": changed}
    task.artifact("selection.json").write_text(json.dumps(table))
    x = task.split("test").x
    with torch.no_grad():
        theirs = torch.cat([task.teacher().taps(part).penult for part in x.split(500)])
        mine = torch.cat([model.eval().taps(part).penult for part in x.split(500)])
    return task.score(model) | {
        "pool_known": float(known.double().mean()),
        "selected_first": share[0],
        "selected_last": share[-1],
        "known_first": precision[0],
        "known_last": precision[-1],
        "feature_cka": linear_cka(mine, theirs),
    }
