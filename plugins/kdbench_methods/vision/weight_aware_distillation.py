"""Semi-Supervised Learning via Weight-aware Distillation under Class Distribution Mismatch (Du et al., ICCV 2023).

The labelled images are of K target classes, the unlabelled ones of target and of unknown classes. Unknown images that
get a pseudo-label invade the classifier, so each image is weighted by how clearly it belongs to one class.

The teacher is an encoder trained without labels (SimCLR) on all training images. With its features z,

    S_i(u) = max over labelled x of class i of cos(z(u), z(x))        pseudo-label(u) = argmax_i S_i(u)
    w(u) = S_(1) (1 - S_(2) / S_(1)) = S_(1) - S_(2)                  a proxy of the point mutual information

where S_(1) and S_(2) are the two largest. The target classifier is trained on CE(labelled) + mean_u w(u) CE(u, pseudo).
After round r of R the share alpha (1 - r / R)^2 of the unlabelled images that agree best with their pseudo-label
(smallest cross-entropy) joins the labelled ones, with that label and also among the images of its class in S.

``pseudo: classifier`` with ``weighting: none`` is pseudo-labelling by the classifier of the round before (the first
round has labels alone), ``weighting: none`` alone is distillation without weights. An oracle that filters unknown
images is the task with ``data.derive.ratio: 0`` and fewer unlabelled images. Evaluation adds how well w tells known
from unknown images, the accuracy of pseudo-labels on known ones, and what was admitted. The paper's 2,000 epochs of
SimCLR and WRN-28-2 are out of reach on a processor, not by parameters.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import JobError, UsageError
from kdbench.losses.contrastive import cosines
from kdbench.losses.logits import cross_entropy
from kdbench.tracks.vision.batches import Pairs, Split
from kdbench.tracks.vision.views import random_view
from kdbench.training.contrastive import Projected, simclr

PAPER = Paper(
    slug="weight_aware_distillation",
    title="Semi-Supervised Learning via Weight-aware Distillation under Class Distribution Mismatch",
    year=2023,
    authors=["Pan Du", "Suyun Zhao", "Zisen Sheng", "Cuiping Li", "Hong Chen"],
    venue="ICCV 2023",
    arxiv="2308.11874",
    url="https://github.com/RUC-DWBI-ML/research/tree/main/WAD-master",
    track="vision",
    source="code",
    tasks=["mismatch", "digits-fewlabel"],
    tags=["semi-supervised", "contrastive", "open-set"],
    claims=[
        Compare(
            metric="weight_auroc",
            subject="weight_aware_distillation",
            reference=0.5,
            tasks=["mismatch", "mismatch-20", "mismatch-80"],
            note="the weights tell known from unknown classes",
        ),
        Compare(
            metric="top1",
            subject="weight_aware_distillation",
            reference={"method": "weight_aware_distillation", "params": {"pseudo": "classifier", "weighting": "none"}},
            tasks=["mismatch-80"],
            note="where most unlabelled images are of unknown classes, pseudo-labelling suffers more",
        ),
    ],
    departures=[
        "Adam at 5e-3 in place of 5e-4, for rounds of 150 steps in place of 1500",
        "the released code trains a sixth round for which nothing is admitted any more; ours ends with the last one",
        "features are of the images as they are, in the released code of one random augmentation of each",
        "no mirrored views by default: left and right are not the same on this track",
    ],
)


class WeightAwareDistillationParams(Params):
    """The encoder, the rounds and what is weighted."""

    encoder: str = Field("rn(8,1)", description="architecture of the contrastive encoder")
    encoder_steps: int | None = Field(
        None, ge=1, description="steps of contrastive training; null: two thirds of the student's"
    )
    encoder_batch: int = Field(128, ge=2, le=4096, description="images of a contrastive batch, each in two views")
    encoder_lr: float = Field(0.1, gt=0, description="peak learning rate of contrastive training, by SGD")
    dim: int = Field(128, ge=2, le=4096, description="width of the projection head's output, which is compared")
    temperature: float = Field(0.5, gt=0, le=10, description="of the contrastive loss")
    smallest_crop: float = Field(1.0, gt=0, le=1, description="side of the smallest window that a view may show")
    jitter: float = Field(0.5, ge=0, le=2, description="strength of the colour jitter of views")
    noise: float = Field(0.1, ge=0, le=2, description="standard deviation of the noise of views, normalised pixels")
    flip: bool = Field(False, description="mirror every other view; not for classes that change by it")
    rounds: int = Field(3, ge=1, le=50, description="R, trainings of the classifier that share the task's steps")
    alpha: float = Field(0.1, ge=0, le=1, description="share of the unlabelled images that is admitted, before decay")
    lr: float = Field(5e-3, gt=0, description="learning rate of the classifier, by Adam, constant within a round")
    augment: bool = Field(True, description="shift the classifier's images by up to 2 pixels")
    pseudo: Literal["representation", "classifier"] = Field("representation", description="where labels come from")
    weighting: Literal["margin", "none"] = Field("margin", description="w = S_(1) - S_(2), or 1 for all images")


def class_similarity(unlabelled, labelled, labels, classes):
    """S: largest cosine of each row of (U, D) to the rows (L, D) of each class; (U, C), -1 for a class without rows."""
    similar = cosines(unlabelled, labelled)
    made = torch.full((len(similar), classes), -1.0, device=similar.device)
    for c in labels.unique().tolist():
        made[:, c] = similar[:, labels == c].amax(1)
    return made


def margins(similarity):
    """(U, C) similarities to pseudo-labels (U,) and weights (U,) = S_(1) - S_(2) in [0, 2]."""
    top, order = similarity.topk(2, 1)
    return order[:, 0], top[:, 0] - top[:, 1]


def admitted_count(alpha, finished, rounds, unlabelled):
    """Images to admit after ``finished`` of the rounds: alpha (1 - r / R)^2 of the unlabelled ones, rounded down."""
    return int(alpha * unlabelled * (rounds - finished) ** 2 / rounds**2)


def representation(task, params):
    """The encoder's features (N, dim) of all training images."""
    train = task.split("train")
    try:
        encoder = task.student(params.encoder)
    except ValueError as error:
        raise UsageError(f"encoder: {error}") from error
    with task.seeded("head"):
        width = encoder.head().in_features
        model = Projected(encoder, lambda network, x: network.taps(x).penult, width, params.dim).to(task.device)
    view = random_view(
        task.generator("views"),
        smallest=params.smallest_crop,
        jitter=params.jitter,
        noise=params.noise,
        flip=params.flip,
    )
    simclr(
        task,
        model,
        task.train_loader(train, batch_size=params.encoder_batch, augment=False, purpose="contrastive"),
        view,
        temperature=params.temperature,
        steps=params.encoder_steps or task.budget.steps(2 / 3),
        lr=params.encoder_lr,
        weight_decay=1e-6,
    )
    return task.predict(model, train.x)


def knowledge(task, params, features, labels, classifier):
    """Pseudo-labels and weights (N,) of all training images; the weights are 0 where nothing is known yet."""
    labelled, train = labels >= 0, task.split("train")
    if features is not None:
        similarity = class_similarity(features, features[labelled], labels[labelled], task.num_classes)
        pseudo, weight = margins(similarity)
    if params.weighting == "none":
        weight = torch.ones(len(labels), device=labels.device)
    if params.pseudo == "classifier":
        if classifier is None:
            return torch.zeros_like(labels), torch.zeros_like(weight)
        pseudo = task.predict(classifier, train.x).argmax(1)
    return pseudo, weight


def train_round(task, params, student, labels, pseudo, weight, number, steps):
    """One round: CE(labelled) + mean_u w(u) CE(u, pseudo); labelled and unlabelled images are one batch."""
    train, labelled = task.split("train"), labels >= 0
    both = Split(train.x, labels, train.index, {})

    def loss(model, batch):
        known, unknown = batch.parts(model(batch.x))
        rows = batch.other.index  # identities of training images are their positions
        each = F.cross_entropy(unknown.float(), pseudo[rows], reduction="none")
        return {"ce": cross_entropy(known, batch.labeled.y), "distilled": (weight[rows] * each).mean()}

    def batches(part, purpose):
        return task.train_loader(both.take(part), augment=params.augment, purpose=purpose)

    loader = Pairs(batches(labelled, f"labeled-{number}"), batches(~labelled, f"unlabeled-{number}"))
    task.fit(
        student,
        loss,
        loader=loader,
        steps=steps,
        tag=f"round{number}",
        optimizer="adam",
        lr=params.lr,
        schedule="constant",
        weight_decay=0.0,
    )


@hookimpl
def train(task, params):
    train, student = task.split("train"), task.student()
    if (train.y >= 0).all():
        raise JobError(f"{task.spec.name} has no unlabelled images to weigh")
    needed = params.pseudo == "representation" or params.weighting == "margin"
    features = representation(task, params) if needed else None
    labels, first, admitted = train.y.clone(), None, []
    total = task.budget.steps()
    cuts = [total * number // params.rounds for number in range(params.rounds + 1)]
    for number in range(1, params.rounds + 1):
        pseudo, weight = knowledge(task, params, features, labels, student if number > 1 else None)
        first = (pseudo, weight) if first is None else first
        if cuts[number] > cuts[number - 1]:
            train_round(task, params, student, labels, pseudo, weight, number, cuts[number] - cuts[number - 1])
        unlabelled = (labels < 0).nonzero().flatten()
        count = admitted_count(params.alpha, number, params.rounds, len(unlabelled))
        if params.pseudo == "classifier":
            pseudo, _ = knowledge(task, params, features, labels, student)
        gap = F.cross_entropy(task.predict(student, train.x[unlabelled]), pseudo[unlabelled], reduction="none")
        chosen = unlabelled[gap.argsort(stable=True)[:count]]
        labels[chosen] = pseudo[chosen]
        admitted.append(chosen)
        task.log(number, round=number, admitted=count, **task.validate(student))
    save_file(
        {
            "pseudo": first[0].cpu().contiguous(),
            "weight": first[1].cpu().contiguous(),
            "admitted": torch.cat(admitted).cpu(),
            "labels": labels.cpu().contiguous(),
        },
        task.artifact("knowledge.safetensors"),
    )
    return student


@hookimpl
def evaluate(task, model, params):
    """How well weights and pseudo-labels of the first round, and what was admitted, fit the hidden classes."""
    made = load_file(task.artifact("knowledge.safetensors"))
    truth = task.truth("train").cpu()
    hidden = task.split("train").y.cpu() < 0
    known, admitted = truth[hidden] >= 0, made["admitted"]
    values = {"known_share": float(known.double().mean()), "admitted": float(len(admitted))}
    if params.pseudo == "representation":
        values["pseudo_top1"] = float((made["pseudo"] == truth)[hidden][known].double().mean())
    if params.weighting == "margin":
        weight = made["weight"][hidden]
        values["weight_mean"] = float(weight.mean())
        if not known.all():
            values["weight_auroc"] = float(roc_auc_score(known.numpy(), weight.numpy()))
    if len(admitted):
        values["admitted_unknown"] = float((truth[admitted] < 0).double().mean())
        values["admitted_right"] = float((made["labels"][admitted] == truth[admitted]).double().mean())
    return task.score(model) | values
