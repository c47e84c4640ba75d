"""Squared error of logits in place of a divergence.

Kim, Oh, Kim, Cho and Yun, IJCAI 2021: as the temperature grows, the divergence becomes the squared
error of the centred logits, which can be minimised directly,

    (1 - w) CE(z_s, y) + w mean (z_s - z_t)^2.

It is written as a training loop of its own.
"""

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.logits import cross_entropy
from kdbench.training.loop import make_optimizer, rate

from kdbench_matching._logits import centred

PAPER = Paper(
    slug="logit_mse",
    title="Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge Distillation",
    year=2021,
    authors=["Taehyeon Kim", "Jaehoon Oh", "NakYil Kim", "Sangwook Cho", "Se-Young Yun"],
    venue="IJCAI",
    arxiv="2105.08919",
    track="vision",
    source="abstract",
    tasks=["classify"],
    requires=["logits"],
    tags=["logits"],
    claims=[
        Compare(metric="top1", subject="logit_mse", reference="kd", tasks=["classify"]),
    ],
    departures=["logits are centred first, so that a constant shift of them costs nothing"],
)


class LogitMseParams(Params):
    """How much the teacher says."""

    weight: float = Field(0.5, ge=0, le=1, description="of the squared error")


def squared_error(student, teacher):
    """Mean squared difference of centred logits; (B, C), (B, C) to a scalar."""
    return (centred(student) - centred(teacher)).square().mean()


@hookimpl
def train(task, params):
    student, recipe, total = task.student(), task.spec.recipe, task.budget.steps()
    optimizer = make_optimizer(list(student.parameters()), recipe)
    student.train()
    for step, batch in task.steps():
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * rate(step - 1, total, recipe)
        logits = student(batch.x)
        hard = cross_entropy(logits, batch.y)
        soft = squared_error(logits, task.teacher_logits(batch))
        loss = (1 - params.weight) * hard + params.weight * soft
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.log(step, loss=loss.item(), ce=hard.item(), mse=soft.item())
    return student.eval()


@hookimpl
def evaluate(task, model):
    """With the squared error on the validation images."""
    images = task.split("val").x
    error = squared_error(task.predict(model, images), task.predict(task.teacher(), images))
    return task.score(model) | {"logit_mse": float(error)}
