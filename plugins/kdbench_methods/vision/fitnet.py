"""FitNets: hints from an intermediate stage (Romero et al., ICLR 2015).

CE + weight * MSE(r(f_s), f_t): a regressor r (1x1 convolution, batch normalisation, ReLU) maps the student's stage to
the teacher's width. Trained jointly rather than in two phases, the form that later papers compare with. Stages of
token networks are taken as maps of their patches; where the grids differ, the finer one is averaged. The ReLU is left
out where the teacher's features are signed.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.training.hints import hint_loss

BASELINE = Baseline(
    slug="fitnet",
    title="FitNets: Hints for Thin Deep Nets",
    track="vision",
    tasks=["classify", "ensemble", "hetero", "longtail", "noisy", "mismatch", "multidomain"],
    requires=["features"],
    tags=["features"],
    reference="Romero, Ballas, Kahou, Chassang, Gatta, Bengio; ICLR 2015, arXiv 1412.6550",
)


class FitnetParams(Params):
    """Which stage gives the hint, and how much it weighs."""

    depth: float = Field(0.67, ge=0, le=1, description="relative depth of the hint and the guided stage (1: the last)")
    weight: float = Field(100.0, ge=0, description="of the squared distance beside a cross-entropy of weight 1")


@hookimpl
def train(task, params):
    student, example = task.student(), next(iter(task.train_loader()))
    with task.seeded("regressor"):
        regressor, loss = hint_loss(student, example, task.teacher_taps, depth=params.depth, weight=params.weight)
    task.fit(student, loss, modules=[regressor])
    return student
