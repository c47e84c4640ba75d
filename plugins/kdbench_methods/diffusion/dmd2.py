"""DMD2: improved distribution matching distillation.

Yin et al., NeurIPS 2024. A generator of one or a few steps is moved by the gradient of a reverse KL divergence, taken
from two denoisers: the teacher, and a critic that learns the generator's samples. The paper adds to DMD:

* *no regression*: the loss on stored pairs of noise and image goes, and with it the data set of the teacher's samples
  (section 4.1);
* *two time scales*: the critic is updated K times, on fresh samples, for each update of the generator (section 4.2);
* *GAN*: a head on the critic's bottleneck tells real from generated samples, both noised to a random level. Its loss
  softplus(fake) + softplus(-real) trains head and critic, softplus(-logit) the generator (section 4.3);
* *few steps*: at times t_1 > ... > t_N the generator predicts x_0, which is noised anew to the next time (section 4.4);
* *simulated inference*: training inputs of step k are the generator's own after k - 1 steps, without gradient, not
  noised data (section 4.5).

The critic's loss is E w(s) |F(x_s, s) - x|^2 with w = 1 / s^2 + 1 / std^2 at all levels. The generator's is
|x - stopgrad(x - g)|^2 / 2 with g = (F(x_s) - T(x_s)) / mean|x - T(x_s)| at levels between 2 and 98 % of the grid.

``evaluate`` adds ``gan_accuracy_fake``, ``_train`` and ``_val``, the discriminator's on generated, training and unseen
images, and on points ``critic_error``, E |F - F*|^2 with F* the posterior mean of the generator's own samples.
"""

from typing import Literal

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.diffusion.blocks import diagnosis
from kdbench.tracks.diffusion.blocks.backward import student_times
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.gan import new_adversary
from kdbench.tracks.diffusion.blocks.matching import Matching
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.blocks.turns import alternate, generator_updates
from kdbench.tracks.diffusion.samplers.fewstep import FewStep

PAPER = Paper(
    slug="dmd2",
    title="Improved Distribution Matching Distillation for Fast Image Synthesis",
    year=2024,
    authors=[
        "Tianwei Yin",
        "Michaël Gharbi",
        "Taesung Park",
        "Richard Zhang",
        "Eli Shechtman",
        "Frédo Durand",
        "William T. Freeman",
    ],
    venue="NeurIPS",
    track="diffusion",
    arxiv="2405.14867",
    source="code",
    tasks=["points", "digits", "attributes", "hf"],
    requires=["weights"],
    tags=["score-distillation", "adversarial", "few-step"],
    claims=[
        Compare(
            metric="fd",
            subject="dmd2",
            reference={"method": "dmd2", "params": {"ratio": 1, "pace": 5}},
            tasks=["digits", "digits-small"],
            note="Five updates of the critic are better than one, at equal updates of the generator.",
        ),
        Compare(
            metric="sw2",
            subject={"method": "dmd2", "params": {"start": 20.0, "critic_lr": 1e-4}},
            reference={"method": "dmd2", "params": {"start": 20.0, "critic_lr": 1e-4, "ratio": 1, "pace": 5}},
            tasks=["grid"],
            note="So they are where the critic is slow and the generator begins with pure noise.",
        ),
        Compare(
            metric="critic_error",
            subject="dmd2",
            reference={"method": "dmd2", "params": {"ratio": 1, "pace": 5}},
            tasks=["ring", "grid"],
            direction="min",
            note="With five updates the critic is closer to the score of the generator's samples.",
        ),
        Compare(
            metric="fd",
            subject="dmd2",
            reference="regression_kd",
            tasks=["digits"],
            note="Without stored pairs it is better than regression on them.",
        ),
        Compare(
            metric="fd",
            subject="dmd2",
            reference="gan_only",
            tasks=["digits", "digits-small", "digits-unet"],
            note="The adversarial term alone is not enough.",
        ),
        Compare(
            metric="fd",
            subject={"method": "dmd2", "params": {"steps": 4}},
            reference={"method": "dmd2", "params": {"steps": 4, "inputs": "noised"}},
            tasks=["digits"],
            note="Inputs from simulated inference are better than noised data.",
        ),
    ],
    departures=[
        "the head is two layers at each place of the bottleneck, not a stack of strided convolutions: maps are small",
        "learning rates are 2e-4 and 4e-4, not 2e-6 or less: there are some hundred updates, not hundreds of thousands",
        "the generator is called at the task's time, 2.5 for noise of standard deviation up to 20, not at the largest",
        "the critic learns from samples of its own turn; the released code gives it those of the generator's turn",
        "the normalizer is at least 1e-6; the released code replaces what is not finite by 0",
    ],
)


class Dmd2Params(Params):
    """Turns, steps, levels and the adversarial side."""

    ratio: int = Field(5, ge=1, le=100, description="updates of the critic for each of the generator (K)")
    pace: int = Field(0, ge=0, le=100, description="as many updates of the generator as with this ratio; 0: its own")
    steps: int = Field(1, ge=1, le=64, description="steps of the generator (N)")
    inputs: Literal["simulated", "noised"] = Field(
        "simulated", description="what later steps are trained on: the generator's own states, or noised data"
    )
    lr: float = Field(2e-4, gt=0, le=1, description="learning rate of the generator; the paper: 2e-6 to 5e-7")
    critic_lr: float = Field(4e-4, gt=0, le=1, description="learning rate of the critic; the paper: as the generator's")
    clip: float = Field(10.0, ge=0, le=1000, description="largest norm of either gradient; 0: any")
    gan_weight: float = Field(3e-3, ge=0, le=100, description="weight of the generator's adversarial loss; 0: no GAN")
    gan_critic_weight: float = Field(1e-2, ge=0, le=100, description="weight of the discriminator's loss")
    hidden: int = Field(64, ge=0, le=4096, description="width of the discriminator's head; 0: one layer")
    normalize: bool = Field(True, description="divide a sample's gradient by the mean of |x - T|")
    guidance: float = Field(0.0, ge=0, le=50, description="scale of the teacher's guidance; 0: the task's")
    start: float = Field(0.0, ge=0, le=1000, description="first time of the generator; 0: the task's")
    least: float = Field(0.02, ge=0, le=0.5, description="cleanest level that is compared, as a share of the grid")
    most: float = Field(0.98, ge=0.6, le=1, description="noisiest level that is compared, as a share of the grid")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged generator")


@hookimpl
def train(task, params):
    generator, network, notes = task.student(), task.score_network(), Notes()
    adversary = new_adversary(
        task,
        network,
        critic_weight=params.gan_critic_weight,
        generator_weight=params.gan_weight,
        hidden=params.hidden,
        notes=notes,
    )
    heads = [] if adversary is None else [adversary.gan.heads]
    critic = Critic(network, lr=params.critic_lr, modules=heads, clip=params.clip or None)
    times = student_times(task.process, params.steps, params.start or task.sigma_init)
    matching = Matching(
        task,
        generator,
        critic,
        times=times,
        guidance=params.guidance or task.guidance,
        normalize=params.normalize,
        least=params.least,
        most=params.most,
        adversary=adversary,
        inputs=params.inputs,
        notes=notes,
    )
    result = alternate(
        task,
        generator,
        critic,
        matching.critic_loss,
        matching.generator_loss,
        ratio=params.ratio,
        updates=generator_updates(task, max(params.pace, params.ratio)) if params.pace else None,
        real=adversary is not None or matching.needs_data,
        lr=params.lr,
        clip=params.clip or None,
        ema=params.ema,
        notes=notes,
        state=[] if adversary is None else adversary.parts,
    )
    diagnosis.leave(task, matching)
    return FewStep(result.ema, times)


@hookimpl
def evaluate(task, model):
    return task.score(model) | diagnosis.found(task)
