"""f-distill: one-step generators by distribution matching with any f-divergence.

Xu et al., 2025. Distribution matching follows the gradient of KL(p || q) from generator p to teacher q, which seeks
modes. For D_f(q || p) = E_p f(r), r = q / p, the gradient of a sample gets a weight:

    dD_f / dtheta = E_p [h(r) (s_p - s_q) dx / dtheta],   h(r) = r^2 f''(r),

1 for the reverse KL divergence, r for forward KL, r / (1 + r) for Jensen-Shannon, sqrt(r) for squared Hellinger, 1 + r
for Jeffreys, 1 / (1 + r) for a softened reverse KL, 1 / r for Neyman's chi^2: the less a divergence seeks modes, the
more count samples where the teacher has more mass. On top of DMD2 (critic, turns, GAN, few steps) there are

* *discriminator* on features of the frozen teacher, at the noise level of the scores; in the generator's turn one
  noised sample is shown to teacher, critic and discriminator;
* *ratio* r = exp(logit), clipped, divided by a moving mean of its noise level, in ten bins;
* *weights* h(r) over their mean in the batch; nothing of them carries a gradient;
* *loss* |x - stopgrad(x - w h (D_fake - D_real))|^2 / 2 with w = 1 / mean|x - D_real|, and softplus(-logit).

Guidance is the teacher's alone. With ``divergence: rkl`` and ``discriminator: critic`` this is DMD2, bit for bit.

``evaluate`` adds the least, mean and largest h of a batch (``h_min``, ``h_mean``, ``h_max``; means over the training),
``gradient_noise``, the variance of the direction in a batch over its squared mean, and on points ``critic_error``
and ``log_ratio_correlation``, of logits with the exact log q / p. The paper's results on ImageNet and text to image are
out of reach here.
"""

from typing import Literal

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.tracks.diffusion.blocks import diagnosis
from kdbench.tracks.diffusion.blocks.backward import student_times
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.density import log_ratios
from kdbench.tracks.diffusion.blocks.fdiv import divergence
from kdbench.tracks.diffusion.blocks.gan import Heads, new_adversary
from kdbench.tracks.diffusion.blocks.gradients import GradientTail
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.blocks.ratio import DensityRatio
from kdbench.tracks.diffusion.blocks.turns import alternate
from kdbench.tracks.diffusion.blocks.weighting import Judge, WeightedMatching, feature_network
from kdbench.tracks.diffusion.samplers.fewstep import FewStep

PAPER = Paper(
    slug="f_distill",
    title="One-step Diffusion Models with f-Divergence Distribution Matching",
    year=2025,
    authors=["Yilun Xu", "Weili Nie", "Arash Vahdat"],
    track="diffusion",
    arxiv="2502.15681",
    source="code",
    tasks=["points", "digits", "attributes", "hf"],
    requires=["weights"],
    tags=["score-distillation", "adversarial", "f-divergence"],
    claims=[
        Compare(
            metric="mode_l1",
            subject="f_distill",
            reference={"method": "f_distill", "params": {"divergence": "rkl"}},
            tasks=["grid"],
            note="Jensen-Shannon keeps the masses of modes better than reverse KL.",
        ),
        Compare(
            metric="mode_l1",
            subject={"method": "f_distill", "params": {"divergence": "kl"}},
            reference={"method": "f_distill", "params": {"divergence": "rkl"}},
            tasks=["grid"],
            note="So does forward KL.",
        ),
        Compare(
            metric="recall",
            subject="f_distill",
            reference={"method": "f_distill", "params": {"divergence": "rkl"}},
            tasks=["digits"],
            note="Samples are more diverse.",
        ),
        Compare(
            metric="fd",
            subject="f_distill",
            reference="dmd2",
            tasks=["digits"],
            note="Jensen-Shannon is better than DMD2.",
        ),
    ],
    departures=[
        "the discriminator is two layers at each place of the teacher's bottleneck: feature maps are small",
        "where the teacher is exact and has no features, those of the network that is fitted to it are read",
        "learning rates are 2e-4 and 4e-4: there are some hundred updates, not hundreds of thousands",
        "reverse KL has h = 1: the released code fails there",
        "several steps are trained on simulated inference, as DMD2's, not on noised data",
    ],
)


class FDistillParams(Params):
    """Divergence, ratio, discriminator, and all that DMD2 has."""

    divergence: Literal["rkl", "kl", "js", "sf", "neyman", "sh", "jf"] = Field(
        "js", description="reverse, forward KL, Jensen-Shannon, softened reverse KL, Neyman, Hellinger, Jeffreys"
    )
    discriminator: Literal["teacher", "critic"] = Field(
        "teacher", description="whose features the discriminator reads; critic: as in DMD2, at levels of its own"
    )
    ratio_least: float = Field(0.1, gt=0, le=1, description="least density ratio")
    ratio_most: float = Field(20.0, ge=1, le=1e4, description="largest density ratio")
    ratio_bins: int = Field(10, ge=1, le=1000, description="noise levels, even in time, whose mean ratio is 1")
    ratio_rate: float = Field(0.5, ge=0, lt=1, description="share that a mean keeps; the paper: 0 and 0.5 (ImageNet)")
    ratio: int = Field(5, ge=1, le=100, description="updates of the critic for each of the generator (K)")
    steps: int = Field(1, ge=1, le=64, description="steps of the generator (N)")
    lr: float = Field(2e-4, gt=0, le=1, description="learning rate of the generator; the paper: 2e-6 to 1e-5")
    critic_lr: float = Field(4e-4, gt=0, le=1, description="learning rate of critic and discriminator")
    clip: float = Field(10.0, ge=0, le=1000, description="largest norm of either gradient; 0: any")
    gan_weight: float = Field(3e-3, ge=0, le=100, description="weight of the generator's adversarial loss")
    gan_critic_weight: float = Field(1e-2, ge=0, le=100, description="weight of the discriminator's loss")
    hidden: int = Field(64, ge=0, le=4096, description="width of the discriminator's head; 0: one layer")
    guidance: float = Field(0.0, ge=0, le=50, description="scale of the teacher's guidance; 0: the task's")
    start: float = Field(0.0, ge=0, le=1000, description="first time of the generator; 0: the task's")
    least: float = Field(0.02, ge=0, le=0.5, description="cleanest level that is compared, as a share of the grid")
    most: float = Field(0.98, ge=0.6, le=1, description="noisiest level that is compared, as a share of the grid")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged generator")


def new_judge(task, network, params, notes):
    """The discriminator and, where it is DMD2's, its adversary."""
    own = params.discriminator == "teacher"
    if not params.gan_critic_weight or not (own or params.gan_weight):
        raise UsageError("a density ratio needs a discriminator: gan_critic_weight above 0, and gan_weight with critic")
    if own:
        reader = feature_network(task)
        with task.seeded("heads"):
            heads = task.place(Heads(reader.channels, hidden=params.hidden))
        return Judge(reader, heads, params.gan_critic_weight, params.gan_weight, own=True), None
    weights = {"critic_weight": params.gan_critic_weight, "generator_weight": params.gan_weight}
    adversary = new_adversary(task, network, hidden=params.hidden, notes=notes, **weights)
    return Judge(network, adversary.gan.heads, **weights, own=False), adversary


@hookimpl
def train(task, params):
    generator, network, notes, tail = task.student(), task.score_network(), Notes(), GradientTail()
    judge, adversary = new_judge(task, network, params, notes)
    critic = Critic(network, lr=params.critic_lr, modules=[judge.heads], clip=params.clip or None)
    times = student_times(task.process, params.steps, params.start or task.sigma_init)
    bounds = {"least": params.ratio_least, "most": params.ratio_most}
    ratio = DensityRatio(task.process, bins=params.ratio_bins, rate=params.ratio_rate, **bounds)
    matching = WeightedMatching(
        task,
        generator,
        critic,
        times=times,
        guidance=params.guidance or task.guidance,
        least=params.least,
        most=params.most,
        adversary=adversary,
        notes=notes,
        divergence=divergence(params.divergence),
        judge=judge,
        ratio=ratio,
        tail=tail,
    )
    result = alternate(
        task,
        generator,
        critic,
        matching.critic_loss,
        matching.generator_loss,
        ratio=params.ratio,
        real=True,
        lr=params.lr,
        clip=params.clip or None,
        ema=params.ema,
        notes=notes,
        state=[ratio, tail, matching.range, *([] if adversary is None else adversary.parts)],
    )
    values = {"gradient_noise": tail.summary()["gradient_noise"], **matching.range.read()}
    if task.spec.data.kind == "points":
        values["critic_error"] = diagnosis.critic_error(task, matching, task.generator("diagnosis"))
        values |= log_ratios(task, generator, times, judge.network, judge.heads, ratio).summary()
    diagnosis.leave_values(task, values)
    return FewStep(result.ema, times)


@hookimpl
def evaluate(task, model):
    return task.score(model) | diagnosis.found(task)
