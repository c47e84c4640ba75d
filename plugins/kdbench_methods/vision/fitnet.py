"""FitNets: hints from an intermediate stage (Romero et al., ICLR 2015).

CE + weight * MSE(r(f_s), f_t): a regressor r (1x1 convolution, batch normalisation, ReLU) maps the student's stage to
the teacher's width. Trained jointly rather than in two phases, the form that later papers compare with. Stages of
token networks are taken as maps of their patches; where the grids differ, the finer one is averaged. The ReLU is left
out where the teacher's features are signed.
"""

import torch

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.features import hint
from kdbench.losses.logits import cross_entropy
from kdbench.training.projectors import as_map, projector, resize

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


def stage(taps, depth):
    """The stage at a relative depth as a map (B, C, H, W)."""
    index = max(0, round(depth * len(taps.stages)) - 1)
    return as_map(taps.stages[index])


@hookimpl
def train(task, params):
    student = task.student()
    batch = next(iter(task.train_loader()))
    with torch.no_grad():
        mine = stage(student.eval().taps(batch.x), params.depth)
        theirs = stage(task.teacher_taps(batch), params.depth)
    with task.seeded("regressor"):
        regressor = projector("conv", mine.shape[1], theirs.shape[1], relu=bool((theirs >= 0).all())).to(task.device)
    side = min(mine.shape[-1], theirs.shape[-1])

    def loss(model, batch):
        taps = model.taps(batch.x)
        with torch.no_grad():
            target = resize(stage(task.teacher_taps(batch), params.depth), side)
        guided = regressor(resize(stage(taps, params.depth), side))
        return {"ce": cross_entropy(taps.logits, batch.y), "hint": params.weight * hint(guided, target)}

    task.fit(student, loss, modules=[regressor])
    return student
