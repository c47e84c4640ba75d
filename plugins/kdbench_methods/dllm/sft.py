"""More training by the objective of masked diffusion on the reference responses, decoded with a threshold.

    L = 1 / (t L) * sum over masked positions of -log p(y_i | prompt, y_visible),   t ~ U(0.02, 1)

What is gained by more training alone, without a teacher.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.dllm.blocks.objectives import mdm_loss
from kdbench.tracks.dllm.decoders.policy import PolicyDecoder
from kdbench.tracks.dllm.policies.basic import Threshold

BASELINE = Baseline(
    slug="sft",
    title="More training on the reference responses",
    track="dllm",
    tasks=["*"],
    requires=["labels"],
    tags=["no-teacher"],
    reference="Nie et al., 2025 (LLaDA)",
)


class SftParams(Params):
    """Training and decoding."""

    gamma: float = Field(0.9, gt=0, le=1, description="confidence from which a position is committed")
    lr: float = Field(3e-4, gt=0, le=1, description="peak of the learning rate")


@hookimpl
def train(task, params):
    student = task.student()
    generator = task.generator("masks")
    task.fit(student, lambda net, batch: mdm_loss(net, batch, generator, mask_id=task.mask), lr=params.lr)
    return PolicyDecoder(student, Threshold(params.gamma, points=task.spec.evaluation.thresholds))
