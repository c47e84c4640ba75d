"""Decoupled knowledge distillation (Zhao et al., CVPR 2022).

CE + w(step) T^2 (alpha TCKD + beta NCKD): the divergence is split into a part on {target, rest} and a part among the
other classes, which ordinary distillation suppresses by the teacher's confidence. w rises linearly to 1 over the
warm-up. Unlabelled samples take the teacher's prediction for the target.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.logits import cross_entropy, dkd, hard_labels
from kdbench.training.schedules import Ramp

BASELINE = Baseline(
    slug="kd_dkd",
    title="Decoupled Knowledge Distillation",
    track="vision",
    tasks=["classify", "ensemble", "hetero", "longtail", "noisy", "mismatch", "multidomain", "webly"],
    requires=["logits"],
    tags=["logits", "divergence"],
    reference="Zhao, Cui, Song, Qiu, Liang; CVPR 2022, arXiv 2203.08679",
)


class DkdParams(Params):
    """Weights of the two parts, temperature and warm-up."""

    alpha: float = Field(1.0, ge=0, description="weight of the target-class part")
    beta: float = Field(8.0, ge=0, description="weight of the part among the other classes")
    temperature: float = Field(4.0, gt=0, le=100, description="softens both networks' distributions")
    warmup: float = Field(0.08, ge=0, lt=1, description="fraction of the steps over which the weight rises from 0 to 1")


@hookimpl
def train(task, params):
    student, ramp = task.student(), Ramp(task.budget.steps(), params.warmup)

    def loss(model, batch):
        logits, teacher = model(batch.x), task.teacher_logits(batch)
        target = hard_labels(batch.y, teacher)
        divergence = dkd(logits, teacher, target, alpha=params.alpha, beta=params.beta, temperature=params.temperature)
        return {"ce": cross_entropy(logits, batch.y), "dkd": ramp.value * divergence}

    task.fit(student, loss, on_step=ramp, state=[ramp])
    return student
