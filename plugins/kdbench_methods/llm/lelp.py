"""LELP: Linear Projections of Teacher Embeddings for Few-Class Distillation (Loo, Iliopoulos, Hu and Vee, 2024).

The fewer classes there are, the less a teacher's probabilities say about how it generalises. LELP asks its embeddings:

1. Collect h(x), what the teacher's linear classifier W_T reads, on the training data. Per class c: subtract the mean,
   project to the null space of W_T (what W_T sees is in the logits already), keep the k directions of a PCA, rotate
   them by a random orthogonal matrix so that none of them dominates, scale the coordinates u_j to unit variance.
2. Coordinate u_j of class c makes two pseudo-subclasses (c, j, +) and (c, j, -): S = 2k for each class.
3. Soft labels over the C * S subclasses: P(c, j, +-|x) = p_T(c|x) * softmax_(j, +-)(+- u_j / tau_sub). Summed within a
   class they are p_T(c|x).
4. The student has a head of C * S outputs and is trained on these labels by forward KL (the gradient of cross-entropy).
   To predict, it sums the probabilities within each class. Widths of teacher and student need not match. Each output
   starts at the row of its class in the task's initial student, plus noise.

``target`` chooses what the student learns from, everything else being equal: ``pca`` (LELP), ``random`` directions of
the null space, ``kmeans`` clusters in it, ``trained`` (subclass distillation, Müller et al. 2020: the teacher itself
learns the subclasses), ``classes`` (plain distillation) and ``features`` (plain, and the mean squared distance of
projected embeddings). ``share`` is the data budget: subclasses and student see that share of each class.

``evaluate`` adds the agreement of student and teacher about the subclass within the true class, the normalised mutual
information of these subclasses with the hidden topic where the data have one, the errors of the two identities (labels
that sum to p_T, directions that W_T maps to 0), and a table by class. That the gain shrinks with the number of classes
shows in ``data.classes`` of classify-docstrings. Amazon Reviews, Sentiment140 and pretrained encoders are out of reach
at this scale.
"""

import json
from typing import Literal

from safetensors.torch import load_file, save_file

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.divergences import fkl, log_softmax
from kdbench.losses.subclasses import by_class, class_logits, joint_log_probs
from kdbench.losses.tokens import tok_mean
from kdbench.tracks.llm.blocks.embeddings import imitate_embeddings, teacher_embeddings
from kdbench.tracks.llm.blocks.pseudo_subclasses import (
    all_subclass_logits,
    compare_subclasses,
    find_subclasses,
    share_of_classes,
    split_teacher,
)
from kdbench.tracks.llm.blocks.subclasses import subclass_logits, with_subclasses
from kdbench.tracks.llm.networks.models import token_nll
from kdbench.training.distill import distillation_loss, train_with_divergence
from kdbench.training.subclasses import Clusters, Directions

PAPER = Paper(
    slug="lelp",
    title="Linear Projections of Teacher Embeddings for Few-Class Distillation",
    year=2024,
    authors=["Noel Loo", "Fotis Iliopoulos", "Wei Hu", "Erik Vee"],
    track="llm",
    arxiv="2409.20449",
    source="paper",
    tasks=["classify"],
    requires=["logits", "features", "weights", "labels"],
    tags=["off-policy", "subclasses", "few-class"],
    claims=[
        Compare(
            metric="accuracy",
            subject="lelp",
            reference="kd_fkl",
            tasks=["classify-reviews"],
            note="With two classes, pseudo-subclasses teach more than the probabilities of the classes.",
        ),
        Compare(
            metric="accuracy",
            subject="lelp",
            reference={"method": "lelp", "params": {"target": "trained"}},
            tasks=["classify-reviews"],
            margin=0.01,
            kind="noninferior",
            note="Competitive with subclasses that the teacher is trained to have, without training it.",
        ),
        Compare(
            metric="accuracy",
            subject="lelp",
            reference={"method": "lelp", "params": {"target": "features"}},
            tasks=["classify-reviews"],
            margin=0.01,
            kind="noninferior",
            note="Competitive with a student that imitates the embeddings through a projector.",
        ),
        Compare(
            metric="marginal_error",
            subject="lelp",
            reference=0.0,
            tasks=["classify-reviews", "classify-docstrings"],
            margin=1e-5,
            kind="noninferior",
            direction="min",
            note="The soft labels of the subclasses of a class sum to the teacher's probability of the class.",
        ),
        Compare(
            metric="null_space_error",
            subject="lelp",
            reference=0.0,
            tasks=["classify-reviews", "classify-docstrings"],
            margin=1e-5,
            kind="noninferior",
            direction="min",
            note="The teacher's classifier sees nothing of the directions.",
        ),
    ],
    departures=[
        "soft labels are the class probability times a softmax over the signed coordinates: our reading of step 3",
        "target=trained tunes a copy of the task's teacher under a new head instead of training one from scratch",
        "embeddings and soft labels are computed once per job, since the data are fixed",
        "the data are procedural reviews and docstrings, since the paper's are not available offline",
    ],
)

LINEAR = ("pca", "random")
SUBCLASSES = (*LINEAR, "kmeans", "trained")


class LelpParams(Params):
    """What the student learns from, the pseudo-subclasses and the share of the data."""

    target: Literal["pca", "random", "kmeans", "trained", "classes", "features"] = Field(
        "pca",
        description="pca: LELP; random directions; kmeans clusters; trained: the teacher learns its subclasses; "
        "classes: plain distillation; features: plain distillation and embeddings",
    )
    directions: int = Field(4, ge=1, le=256, description="k: of each class, which makes 2k subclasses of any kind")
    rotate: bool = Field(True, description="pca: rotate the directions of a class among themselves at random")
    tau_sub: float = Field(1.0, gt=0, le=100, description="divides the scores of the subclasses; trained: not used")
    temperature: float = Field(1.0, gt=0, le=100, description="of the class probabilities and of the student")
    kd_ratio: float = Field(1.0, ge=0, le=1, description="weight of the divergence; the hard labels have the rest")
    share: float = Field(1.0, gt=0, le=1, description="of the training rows of each class that may be used")
    feature_weight: float = Field(1.0, ge=0, le=1000, description="features: weight of the squared distance")
    teacher_steps: float = Field(
        1.0, gt=0, le=100, description="trained: steps of the teacher, as a multiple of the task's"
    )
    teacher_lr: float = Field(5e-4, gt=0, le=1, description="trained: peak learning rate of the teacher")
    contrast: float = Field(0.1, ge=0, le=100, description="trained: weight of the loss that spreads the subclasses")
    contrast_temperature: float = Field(0.5, gt=0, le=100, description="trained: of that loss")


# --- the teacher's side -----------------------------------------------------------------------------------------------


def soft_labels(logits, scores, params):
    """Teacher logits (B, C * S) whose softmax at ``temperature`` is P(c, s|x); logits (B, C), scores (B, C, S)."""
    return params.temperature * joint_log_probs(logits, scores.float() / params.tau_sub, params.temperature)


def teach(task, params, sequences, loader):
    """Teacher logits (N, C * S) of the subclasses of all training rows; what evaluate needs again becomes a file."""
    task.budget.spend("teacher_queries", len(sequences))
    if params.target == "trained":
        teacher = split_teacher(
            task,
            2 * params.directions,
            loader(),
            steps=max(1, round(params.teacher_steps * task.spec.limits["steps"])),
            lr=params.teacher_lr,
            contrast=params.contrast,
            contrast_temperature=params.contrast_temperature,
        )
        save_file(
            {name: value.contiguous() for name, value in teacher.state_dict().items()},
            task.artifact("teacher.safetensors"),
        )
        return all_subclass_logits(task, teacher, sequences)
    embeddings, logits = teacher_embeddings(task, sequences)
    found = find_subclasses(task, params.target, embeddings, sequences.labels, params.directions, rotate=params.rotate)
    save_file(found.tensors(), task.artifact("subclasses.safetensors"))
    return soft_labels(logits, found.scores(embeddings), params)


# --- the student's side -----------------------------------------------------------------------------------------------


@hookimpl
def train(task, params):
    sequences, loader = share_of_classes(task, params.share)
    if params.target == "classes":
        return train_with_divergence(
            task, fkl, kd_ratio=params.kd_ratio, temperature=params.temperature, loader=loader()
        )
    if params.target == "features":
        plain = distillation_loss(task, fkl, kd_ratio=params.kd_ratio, temperature=params.temperature)
        return imitate_embeddings(task, plain, sequences, loader(), weight=params.feature_weight)
    target = teach(task, params, sequences, loader)
    with task.seeded("head"):
        student = with_subclasses(task.student(), 2 * params.directions)

    def loss(model, batch):
        logits, parts = subclass_logits(model, batch), {}
        if params.kd_ratio > 0:
            values = fkl(logits, target[batch.index], temperature=params.temperature)
            parts["kd"] = params.kd_ratio * tok_mean(values)
        if params.kd_ratio < 1:
            nll = token_nll(class_logits(logits, 2 * params.directions), batch.labels)
            parts["ce"] = (1 - params.kd_ratio) * tok_mean(nll)
        return parts

    task.fit(student, loss, loader=loader())
    return student


# --- evaluation -------------------------------------------------------------------------------------------------------


def about_labels(params, logits, scores, found, teacher):
    """Errors of the two identities; logits (N, C), scores (N, C, S) on the test data."""
    subclasses = scores.shape[-1]
    log_probs = log_softmax(soft_labels(logits, scores, params), params.temperature)
    gap = class_logits(log_probs, subclasses).exp() - log_softmax(logits, params.temperature).exp()
    values = {"marginal_error": float(gap.abs().max())}
    if isinstance(found, Directions):
        values["null_space_error"] = found.seen_by(teacher.classifier.weight)
        values["explained"] = float(found.explained.mean())
    return values


@hookimpl
def evaluate(task, model, params):
    values = task.score(model)
    if params.target not in SUBCLASSES:
        return values
    test, subclasses = task.split("test"), 2 * params.directions
    if params.target == "trained":
        teacher = with_subclasses(task.teacher(trainable=True), subclasses)
        teacher.load_state_dict(load_file(task.artifact("teacher.safetensors")))
        scores = by_class(all_subclass_logits(task, teacher, test.sequences), subclasses)
    else:
        tensors = load_file(task.artifact("subclasses.safetensors"), device=str(task.device))
        found = (Clusters if params.target == "kmeans" else Directions)(**tensors)
        embeddings, logits = teacher_embeddings(task, test.sequences)
        scores = found.scores(embeddings)
        values |= about_labels(params, logits, scores, found, task.teacher())
    student = by_class(all_subclass_logits(task, model, test.sequences), subclasses)
    topics = [row.meta.get("topic", "") for row in test.rows]
    compared, table = compare_subclasses(scores, student, test.sequences.labels, task.class_names, topics)
    task.artifact("subclasses.json").write_text(json.dumps({"rows_by_subclass": table}, indent=1) + "\n")
    return values | compared
