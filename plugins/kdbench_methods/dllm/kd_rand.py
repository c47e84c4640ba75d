"""The student learns what the teacher says of the same randomly masked responses, and is decoded with a threshold.

    tau^2 KL(softmax(z_T / tau) || softmax(z_S / tau)), the mean over masked positions,   t ~ U(0.02, 1)

Both see the same canvas, so that the student, which starts as the teacher, has nothing to learn but what training
noise takes away: the reference of methods whose teacher sees more than the student (``reveal`` > 0: each position that
is masked for the student is revealed to the teacher with that probability, independently).
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.divergences import fkl
from kdbench.tracks.dllm.blocks.masking import antithetic, canvas_of, mask_random
from kdbench.tracks.dllm.blocks.objectives import mean_at
from kdbench.tracks.dllm.decoders.policy import PolicyDecoder
from kdbench.tracks.dllm.networks.base import canvas_logits
from kdbench.tracks.dllm.policies.basic import Threshold

BASELINE = Baseline(
    slug="kd_rand",
    title="Forward KL at random masks",
    track="dllm",
    tasks=["*"],
    requires=["logits"],
    tags=["divergence", "off-policy"],
    reference="Hinton et al., 2015",
)


class KdRandParams(Params):
    """Training and decoding."""

    tau: float = Field(2.0, gt=0, le=100, description="temperature of both distributions")
    reveal: float = Field(0.0, ge=0, lt=1, description="probability that a masked position is revealed to the teacher")
    gamma: float = Field(0.9, gt=0, le=1, description="confidence from which a position is committed")
    lr: float = Field(3e-4, gt=0, le=1, description="peak of the learning rate")


@hookimpl
def train(task, params):
    student, teacher = task.student(), task.teacher()
    masks = task.generator("masks")

    def loss(net, batch):
        mask = mask_random(batch.answer, antithetic(len(batch), 0.02, 1.0, masks), masks)
        canvas = canvas_of(batch.answer, mask, task.mask)
        seen = canvas
        if params.reveal:
            seen = canvas_of(batch.answer, mask & ~mask_random(batch.answer, params.reveal, masks), task.mask)
        values = fkl(
            canvas_logits(net, batch.prompts, canvas),
            canvas_logits(teacher, batch.prompts, seen),
            temperature=params.tau,
        )
        return mean_at(values, mask)

    task.fit(student, loss, lr=params.lr)
    return PolicyDecoder(student, Threshold(params.gamma, points=task.spec.evaluation.thresholds))
