"""FixMatch with light augmentation (Sohn et al., NeurIPS 2020): semi-supervised learning without a teacher.

CE(labelled) + w mean_u 1[max q_u >= threshold] CE(strong(u), argmax q_u), where q is the student's own prediction of
the weakly augmented image. Weak: a shift by up to 2 pixels. Strong: a shift by up to 4 pixels and pixel noise; flips
and large rotations would change the class of the track's images. Labelled, weak and strong images go through the
network as one batch, so that its normalisation statistics are updated once per step.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.logits import cross_entropy
from kdbench.tracks.vision.batches import roll
from kdbench.training.loaders import cycle

BASELINE = Baseline(
    slug="fixmatch_lite",
    title="FixMatch with light augmentation",
    track="vision",
    tasks=["digits-fewlabel", "mismatch", "related"],
    tags=["semi-supervised"],
    reference="Sohn, Berthelot, Li et al.; NeurIPS 2020, arXiv 2001.07685",
)


class FixmatchLiteParams(Params):
    """Threshold, weight and amount of augmentation."""

    threshold: float = Field(0.95, ge=0, le=1, description="confidence from which a pseudo-label counts")
    weight: float = Field(1.0, ge=0, description="of the unlabelled term")
    ratio: int = Field(1, ge=1, le=16, description="unlabelled images per labelled one in a batch")
    noise: float = Field(
        0.3, ge=0, description="standard deviation of the strong augmentation's noise, normalised pixels"
    )


@dataclass
class Mixed:
    """Labelled images and two views of unlabelled ones."""

    x: torch.Tensor
    y: torch.Tensor
    weak: torch.Tensor
    strong: torch.Tensor

    def __len__(self):
        return len(self.x) + len(self.weak) + len(self.strong)


def mixed_batches(task, params):
    """Labelled and unlabelled batches side by side, without end."""
    size, generator = task.spec.recipe.batch_size, task.generator("views")
    labelled = cycle(task.train_loader("labeled", batch_size=size, augment=True))
    unlabelled = cycle(
        task.train_loader("unlabeled", batch_size=size * params.ratio, augment=False, purpose="unlabeled")
    )
    for one, other in zip(labelled, unlabelled, strict=False):
        noise = torch.randn(other.x.shape, generator=generator).to(other.x.device)
        strong = roll(other.x, generator, reach=4) + params.noise * noise
        yield Mixed(one.x, one.y, roll(other.x, generator), strong)


def fixmatch_loss(logits, batch, params):
    """Named terms from the logits of labelled, weak and strong images, in this order; (B_l + 2 B_u, C)."""
    labelled, weak, strong = logits.split([len(batch.x), len(batch.weak), len(batch.strong)])
    confidence, pseudo = F.softmax(weak.detach().float(), -1).max(-1)
    kept = (confidence >= params.threshold).float()
    unlabelled = (kept * F.cross_entropy(strong.float(), pseudo, reduction="none")).mean()
    return {"ce": cross_entropy(labelled, batch.y), "pseudo": params.weight * unlabelled}


@hookimpl
def train(task, params):
    student = task.student()

    def loss(model, batch):
        return fixmatch_loss(model(torch.cat([batch.x, batch.weak, batch.strong])), batch, params)

    task.fit(student, loss, loader=mixed_batches(task, params))
    return student
