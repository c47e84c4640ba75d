"""Label smoothing: cross-entropy to (1 - eps) one-hot + eps uniform, the teacher that knows nothing."""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.logits import cross_entropy

BASELINE = Baseline(
    slug="label_smoothing",
    title="Label smoothing",
    track="vision",
    tasks=[
        "classify",
        "ensemble",
        "hetero",
        "selfdistill",
        "longtail",
        "noisy",
        "mismatch",
        "multidomain",
        "related",
        "active",
    ],
    tags=["regularisation"],
    reference="Szegedy et al.; CVPR 2016, arXiv 1512.00567",
)


class LabelSmoothingParams(Params):
    """Amount of smoothing."""

    eps: float = Field(0.1, ge=0, lt=1, description="share of the uniform distribution in the target")


@hookimpl
def train(task, params):
    student = task.student()
    task.fit(
        student,
        lambda model, batch: cross_entropy(model(batch.x), batch.y, smoothing=params.eps),
        loader=task.train_loader("labeled"),
    )
    return student
