"""SiD for few steps: score identity distillation of generators of one or a few steps, and of their guidance.

Zhou, Gu and Wang, 2025. SiD trains a generator on its own samples x = G(z) with a teacher f and a fake score psi that
learns to denoise them. At a noised sample, with D_f and D_psi the predictions of x_0,

    L = (D_f - D_psi) . [(D_f - x) - alpha (D_f - D_psi)] / omega,    omega = mean |x - D_f|,

summed over pixels; the gradient goes through both networks to x, their parameters stay. For several steps there are

* *generator*: one network at times t_i = t_init (1 - i / N); its prediction is noised anew to the next time;
* *uniform mixture*: the outputs of all N steps are one distribution, which is matched as a whole. A sample stops at a
  step drawn for it, the earlier ones without gradient; one fake score learns the mixture and is not told the step;
* *guidance* (kappa_1: of psi in its training, kappa_2 = kappa_3: of psi in the loss, kappa_4: of the teacher). ``lsg``:
  all equal. ``zero``: the teacher is not guided, psi is trained and asked without text. ``anti``: the teacher is not
  guided, psi is trained with and without text and asked with a negative scale, beyond the prediction without text;
* *Diffusion-GAN*, where there are real images: features of psi tell them from the mixture at the same noise level.

With alpha 1 the loss is score implicit matching with the squared norm. ``evaluate`` adds the headline of the outputs of
every step on the validation data (``<headline>_step1`` ...). The paper distils SD 1.5 and SDXL; here text is a prompt
of six tokens, or a class.
"""

from typing import Literal

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.diffusion.blocks.backward import student_times
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.gan import Heads
from kdbench.tracks.diffusion.blocks.identity import BETAS, ScoreIdentity
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.blocks.sid import sid_loss
from kdbench.tracks.diffusion.blocks.turns import alternate
from kdbench.tracks.diffusion.samplers.fewstep import FewStep

PAPER = Paper(
    slug="sid_few_step",
    title="Few-Step Diffusion via Score identity Distillation",
    year=2025,
    authors=["Mingyuan Zhou", "Yi Gu", "Zhendong Wang"],
    track="diffusion",
    arxiv="2505.12674",
    source="code",
    tasks=["points", "digits", "attributes", "hf"],
    requires=["weights"],
    tags=["few-step", "data-free", "score-distillation", "guidance"],
    claims=[
        Compare(
            metric="diversity",
            subject={"method": "sid_few_step", "params": {"strategy": "zero"}},
            reference="sid_few_step",
            tasks=["attributes"],
            note="Zero-CFG has more diverse samples of a prompt than guidance of both networks ...",
        ),
        Compare(
            metric="prompt_accuracy",
            subject={"method": "sid_few_step", "params": {"strategy": "zero"}},
            reference="sid_few_step",
            tasks=["attributes"],
            kind="noninferior",
            margin=0.02,
            note="... at the same accuracy.",
        ),
        Compare(
            metric="diversity",
            subject={"method": "sid_few_step", "params": {"strategy": "anti"}},
            reference="sid_few_step",
            tasks=["attributes"],
            note="So has Anti-CFG ...",
        ),
        Compare(
            metric="prompt_accuracy",
            subject={"method": "sid_few_step", "params": {"strategy": "anti"}},
            reference="sid_few_step",
            tasks=["attributes"],
            kind="noninferior",
            margin=0.02,
            note="... at the same accuracy.",
        ),
        Compare(
            metric="fd",
            subject="sid_few_step",
            reference={"method": "sid_few_step", "params": {"steps": 1}},
            tasks=["attributes", "digits"],
            note="Four steps are better than one.",
        ),
    ],
    departures=[
        "the few-step branch is not published: mixture and guidance follow the paper, all else the one-step code",
        "Anti-CFG trains the fake score at scale 1 with a tenth of the rows without text: our reading",
        "learning rates are 2e-4 and 4e-4, not 1e-6: there are some hundred updates",
        "where times are noise levels (EDM), t_i are places of the grid of Karras et al.",
        "NaNs are caught by the training loop, not left out of the batch",
    ],
)


class SidFewStepParams(Params):
    """Steps, guidance, levels, and the two networks."""

    steps: int = Field(4, ge=1, le=64, description="steps of the generator (N)")
    alpha: float = Field(1.0, ge=0, le=2, description="share of the squared gap that is subtracted; 1.2 for EDM")
    strategy: Literal["lsg", "zero", "anti"] = Field("lsg", description="guidance of teacher and fake score")
    guidance: float = Field(0.0, ge=0, le=50, description="all four scales with lsg; 0: the task's")
    anti: float = Field(-0.5, ge=-10, le=0, description="scale of the fake score in the loss, with anti")
    ratio: int = Field(1, ge=1, le=100, description="updates of the fake score for each of the generator")
    lr: float = Field(2e-4, gt=0, le=1, description="learning rate of the generator; the paper: 1e-6")
    critic_lr: float = Field(4e-4, gt=0, le=1, description="learning rate of the fake score; the paper: 1e-6")
    scale: float = Field(100.0, gt=0, le=1e6, description="factor of the loss, a sum over pixels")
    gan_weight: float = Field(0.0, ge=0, le=100, description="weight of the adversarial loss; 0: no data are used")
    hidden: int = Field(64, ge=0, le=4096, description="width of the discriminator's head; 0: one layer")
    start: float = Field(0.0, ge=0, le=1000, description="first time of the generator (t_init); 0: the task's")
    least: float = Field(0.02, ge=0, le=0.5, description="cleanest level that is compared, as a share of the grid")
    most: float = Field(0.98, ge=0.6, le=1, description="noisiest level that is compared, as a share of the grid")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged generator")


def scales(task, params):
    """Guidance of teacher and fake score by name, as ``ScoreIdentity`` takes them."""
    if params.strategy == "zero":
        return {"guidance": 1.0, "fake_null": True}
    if params.strategy == "anti":
        return {"guidance": 1.0, "fake_guidance": params.anti}
    kappa = params.guidance or task.guidance
    return {"guidance": kappa, "fake_training": kappa, "fake_guidance": kappa}


@hookimpl
def train(task, params):
    generator, network, notes, heads = task.student(), task.score_network(), Notes(), None
    if params.gan_weight:
        with task.seeded("heads"):
            heads = task.place(Heads(network.channels, hidden=params.hidden))
    critic = Critic(network, lr=params.critic_lr, modules=[] if heads is None else [heads], betas=BETAS)
    times = student_times(task.process, params.steps, params.start or task.sigma_init)
    turns = ScoreIdentity(
        task,
        generator,
        critic,
        lambda x, real, fake, t, logits: sid_loss(x, real, fake, params.alpha),
        times=times,
        least=params.least,
        most=params.most,
        scale=params.scale,
        heads=heads,
        gan_weight=params.gan_weight,
        notes=notes,
        **scales(task, params),
    )
    result = alternate(
        task,
        generator,
        critic,
        turns.critic_loss,
        turns.generator_loss,
        ratio=params.ratio,
        real=heads is not None,
        lr=params.lr,
        betas=BETAS,
        ema=params.ema,
        notes=notes,
    )
    return FewStep(result.ema, times)


@hookimpl
def evaluate(task, model):
    headline = task.spec.headline.name
    values = {}
    for steps in range(1, len(model.times) + 1):
        shorter = FewStep(model.experts[:steps], model.times[:steps], model.mode)
        values[f"{headline}_step{steps}"] = task.validate(shorter)[headline]
    return task.score(model) | values
