"""PLD: A Choice-Theoretic List-Wise Knowledge Distillation (2025).

Classes are ranked with the true label first and the rest by descending teacher logit, pi; the student's logits s are
the scores of a Plackett-Luce model of that ranking, each choice weighted by the teacher's probability of the class
chosen:

    L = sum_k a_k [ -s_pi_k + logsumexp_{l >= k} s_pi_l ],   a_k = softmax(t / tau)_pi_k

One loss, with no cross-entropy beside it and no mixing weight: its first term is the cross-entropy weighted by the
teacher's probability of the true label. Uniform weights give ListMLE, weights falling with the rank p-ListMLE, a
weight on the first rank alone the cross-entropy.

Evaluation adds the top-5 accuracy and Kendall's tau between the student's and the teacher's order of the classes.
"""

from typing import Literal

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.logits import hard_labels
from kdbench.losses.ranking import kendall_tau, weighted_list_loss
from kdbench.tracks.vision.metrics import accuracy, topk_accuracy

PAPER = Paper(
    slug="pld",
    title="PLD: A Choice-Theoretic List-Wise Knowledge Distillation",
    year=2025,
    authors=["Ejafa Bassam", "Dawei Zhu", "Kaigui Bian"],
    venue="NeurIPS 2025",
    arxiv="2506.12542",
    track="vision",
    source="paper",
    tasks=["classify", "ensemble", "hetero", "longtail", "noisy", "mismatch", "multidomain", "webly"],
    requires=["logits"],
    tags=["logits", "ranking"],
    claims=[
        Compare(
            metric="top1",
            subject="pld",
            reference="kd",
            tasks=[
                "shapetex",
                "shapetex-large-teacher",
                "shapetex-fewclass",
                "shapetex-mixup",
                "digits-gap",
                "digits-fewlabel",
                "digits-mixup",
                "mnist5k",
                "pictures",
            ],
            kind="noninferior",
            margin=0.01,
        ),
        Compare(
            metric="top1",
            subject="pld",
            reference="dist",
            tasks=[
                "shapetex",
                "shapetex-large-teacher",
                "shapetex-fewclass",
                "shapetex-mixup",
                "digits-gap",
                "digits-fewlabel",
                "digits-mixup",
                "mnist5k",
                "pictures",
            ],
            kind="noninferior",
            margin=0.01,
        ),
        Compare(
            metric="top1",
            subject="pld",
            reference={"method": "pld", "params": {"variant": "listmle"}},
            tasks=[
                "shapetex",
                "shapetex-large-teacher",
                "shapetex-fewclass",
                "shapetex-mixup",
                "digits-gap",
                "digits-fewlabel",
                "digits-mixup",
                "mnist5k",
                "pictures",
            ],
            note="equal weights on all ranks are clearly worse",
        ),
    ],
    departures=[
        "unlabelled samples, which the paper does not have, take the teacher's prediction for the label",
        "the track's optimizer and schedule in place of LAMB or AdamW with weight decay 0.5",
    ],
)


class PldParams(Params):
    """Sharpness of the teacher's weights, and which weights."""

    tau: float = Field(1.0, gt=0, le=100, description="temperature of the teacher's weights; the student has none")
    variant: Literal["pld", "listmle", "p-listmle", "ce"] = Field(
        "pld", description="weights of the ranks: teacher, uniform, decreasing, first only"
    )


WEIGHTING = {"pld": "teacher", "listmle": "uniform", "p-listmle": "decreasing", "ce": "top"}


@hookimpl
def train(task, params):
    student = task.student()

    def loss(model, batch):
        teacher = task.teacher_logits(batch)
        labels = hard_labels(batch.y, teacher)
        weighting = WEIGHTING[params.variant]
        return weighted_list_loss(model(batch.x), teacher, labels, weighting=weighting, temperature=params.tau)

    task.fit(student, loss)
    return student


@hookimpl
def evaluate(task, model):
    test = task.split("test")
    logits, teacher = task.predict(model, test.x), task.predict(task.teacher(), test.x)
    return task.score(model) | {
        "top5": topk_accuracy(logits, test.y, 5),
        "kendall_tau_teacher": float(kendall_tau(logits, teacher).mean()),
        "label_top_of_teacher": accuracy(teacher, test.y),
    }
