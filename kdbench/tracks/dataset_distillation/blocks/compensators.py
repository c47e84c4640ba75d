"""Perturbations that are optimised for the images of several classes at once (inter-class feature compensators).

With a base set of real images x_{c,k} (class c, number k), a compensator u_k minimises

    sum_c CE(f(roll(x_{c,k} + u_k)), c) / C + r_bn sum_l w_l r_l({x_{c,k} + u_k}_c),    u_k = 0 at first

for a frozen network f with batch normalisation, r_l as :func:`.bn.layer_distance`. One that serves all C classes costs
1/C image a class; one for each class costs an image a class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdbench.errors import UsageError
from kdbench.tracks.dataset_distillation.blocks.recover import BETAS, Canvas, recovery_terms, rolled

if TYPE_CHECKING:
    from kdbench.tracks.dataset_distillation.task import DDTask


def base_images(ipc: int, networks: int, classes: int, *, shared: bool = True) -> int:
    """Real images n of a class such that these and their compensators have the size of ``ipc`` images a class.

    floor(ipc / (M / C + 1)) where a compensator serves all C classes, floor(ipc / (M + 1)) where it serves one; M
    networks make one for each base image (of all classes, or of one). Raises ``UsageError`` where not one image fits.
    """
    found = ipc * classes // (networks + classes) if shared else ipc // (networks + 1)
    if not found:
        least = -(-(networks + classes) // classes) if shared else networks + 1
        raise UsageError(
            f"{ipc} images a class are too few for compensators of {networks} networks",
            hint=f"keep at least {least} images a class, or use fewer networks",
        )
    return found


def rows_with(base: int, classes: int, networks: int, *, shared: bool = True) -> Tensor:
    """(base * classes * (networks + 1), 2) rows of an ``ImageSet``: base images as they are, then with each
    compensator.

    Base images lie number by number, each with all classes; compensators network by network, number by number and,
    where they are not shared, class by class.
    """
    images = torch.arange(base * classes)
    own = images // classes if shared else images
    parts = [torch.stack([images, torch.full_like(images, -1)], 1)]
    parts += [torch.stack([images, own + m * (int(own.max()) + 1)], 1) for m in range(networks)]
    return torch.cat(parts)


def compensate(
    task: DDTask,
    base: Tensor,
    labels: Tensor,
    network: nn.Module,
    *,
    steps: int,
    lr: float,
    r_bn: float,
    shared: bool,
    purpose: str,
) -> Tensor:
    """Compensators (n, C, H, W), or (n * K, C, H, W) where each class has its own, of base images (n, K, C, H, W).

    All n are optimised in the same steps; each has statistics, shift and loss of its own, so that they do not depend
    on one another. ``labels`` (K,) are the classes of ``base[k]``. Adam with a rate that falls along a cosine.
    """
    count, classes = base.shape[:2]
    canvas = Canvas(torch.zeros_like(base[:, :1] if shared else base)).to(task.device)
    rng, targets = task.rng(f"roll/{purpose}"), labels.repeat(count)

    def loss(model: Canvas, _: Tensor) -> dict[str, Tensor]:
        x = torch.cat([rolled(batch, rng) for batch in base + model()])
        return recovery_terms(x, targets, [network], [1.0], r_bn, groups=count)

    task.fit(
        canvas,
        loss,
        loader=[torch.arange(count * classes, device=task.device)],
        steps=steps,
        optimizer="adam",
        betas=BETAS,
        lr=lr,
        weight_decay=0.0,
        schedule="cosine",
        accumulate=1,
        tag=purpose,
    )
    return canvas.pixels.detach().flatten(0, 1)
