"""Diff-Instruct, or plain DMD: reverse-KL score distillation with one update of the critic for each of the generator.

Generator and critic start as the teacher. The critic learns to denoise the generator's samples; the generator moves
against the difference of the two predictions at a random level s,

    d KL(p_s || q_s) / dx = score p_s - score q_s = (D_fake(x_s) - D_real(x_s)) / s^2,

which summed over levels is the integral KL divergence of Diff-Instruct. By default each sample's gradient
is divided by the mean of |x - D_real|, as DMD does. No data, no discriminator, no pairs of noise and image.

``evaluate`` adds ``critic_error`` on points (E |D_fake - D*|^2, D* being the posterior mean of the generator's own
samples) and ``early_<headline>``, the mean of the validated headline over the first half of the updates.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.diffusion.blocks import diagnosis
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.matching import Matching
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.blocks.progress import Progress, early, early_updates
from kdbench.tracks.diffusion.blocks.turns import alternate
from kdbench.tracks.diffusion.samplers.fewstep import one_step

BASELINE = Baseline(
    slug="diff_instruct",
    title="Reverse-KL score distillation",
    track="diffusion",
    tasks=["points", "digits", "attributes"],
    requires=["weights"],
    tags=["score-distillation", "data-free", "one-step"],
    reference="Luo et al., NeurIPS 2023; Yin et al., CVPR 2024, without its regression",
)


class DiffInstructParams(Params):
    """The two networks and the levels."""

    ratio: int = Field(1, ge=1, le=100, description="updates of the critic for each of the generator (K)")
    lr: float = Field(2e-4, gt=0, le=1, description="learning rate of the generator")
    critic_lr: float = Field(4e-4, gt=0, le=1, description="learning rate of the critic")
    normalize: bool = Field(True, description="divide a sample's gradient by the mean of |x - D_real|")
    guidance: float = Field(0.0, ge=0, le=50, description="scale of the teacher's guidance; 0: the task's")
    start: float = Field(0.0, ge=0, le=1000, description="time at which the generator is called; 0: the task's")
    least: float = Field(0.02, ge=0, le=0.5, description="cleanest level that is compared, as a share of the grid")
    most: float = Field(0.98, ge=0.6, le=1, description="noisiest level that is compared, as a share of the grid")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged generator")


@hookimpl
def train(task, params):
    generator = task.student()
    critic = Critic(task.score_network(), lr=params.critic_lr)
    start = params.start or task.sigma_init
    notes = Notes()
    progress = Progress(task, one_step(generator, start), early_updates(task, params.ratio))
    matching = Matching(
        task,
        generator,
        critic,
        times=[start],
        guidance=params.guidance or task.guidance,
        normalize=params.normalize,
        least=params.least,
        most=params.most,
        notes=notes,
    )
    result = alternate(
        task,
        generator,
        critic,
        matching.critic_loss,
        matching.generator_loss,
        ratio=params.ratio,
        lr=params.lr,
        ema=params.ema,
        notes=notes,
        state=[progress],
        on_step=progress,
    )
    progress.leave()
    diagnosis.leave(task, matching)
    return one_step(result.ema, start)


@hookimpl
def evaluate(task, model):
    return task.score(model) | diagnosis.found(task) | early(task)
