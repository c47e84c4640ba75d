"""A student that learns to be certain of what it writes itself, and a policy that trusts neighbours more."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from kdbench import Baseline, hookimpl
from kdbench.tracks.dllm.blocks.masking import canvas_of, mask_random
from kdbench.tracks.dllm.blocks.objectives import ce_at, mean_at
from kdbench.tracks.dllm.decoders.policy import PolicyDecoder
from kdbench.tracks.dllm.networks.base import canvas_logits
from kdbench.tracks.dllm.policies.base import DecodingPolicy
from kdbench.tracks.dllm.policies.scores import best, score

CARD = Baseline(
    slug="own_unmasking",
    title="Thresholds that are lower beside written tokens",
    track="dllm",
    tasks=["lists", "squares", "arith"],
    requires=["samples"],
)


@dataclass(frozen=True)
class Neighbours(DecodingPolicy):
    """All positions above a threshold, which is lower for those with a written token to the left."""

    far: float = 0.95
    near: float = 0.8
    kind: ClassVar[str] = "neighbours"

    def commit(self, view):
        written = view.canvas != view.mask
        beside = torch.cat([torch.zeros_like(written[:, :1]), written[:, :-1]], dim=1)
        needed = torch.where(beside, self.near, self.far)
        scores = score(view, "confidence")
        return (scores >= needed) & view.candidates | best(scores, view.candidates)

    def sweep(self):
        return [Neighbours(1 - far, 1 - 4 * far) for far in (0.01, 0.02, 0.05, 0.1)]


@hookimpl
def train(task, params):
    student, masks = task.student(), task.generator("masks")
    written = task.trajectories(500)

    def loss(net, batch):
        mask = mask_random(batch.tokens, 0.5, masks)
        logits = canvas_logits(net, batch.prompts, canvas_of(batch.tokens, mask, task.mask))
        return mean_at(ce_at(logits, batch.tokens, mask), mask)

    task.fit(student, loss, loader=written.loader(task.spec.recipe.batch_size, task.generator("order")))
    return PolicyDecoder(student, Neighbours())
