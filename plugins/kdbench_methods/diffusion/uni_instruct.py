"""Uni-Instruct: one-step generators by f-divergences that are expanded over noise levels.

Wang et al., NeurIPS 2025. With p_s and q_s the densities of noised generated and real samples and r = q_s / p_s,

    D_f(q || p) = int 1/2 E_{p_s} [h(r) ||s_p - s_q||^2] d(s^2),    h(r) = r^2 f''(r)            (theorem 3.1).

Reverse KL has h = 1 and is score implicit matching (SiD), forward KL has h = r, Jensen-Shannon r / (1 + r), chi^2 has
2 r^2. The gradient of a level has a part of score implicit matching and one along the difference of the scores
(theorem 3.2),

    L = h(r) (D_r - D_f) . (D_f - x) / omega  -  r^2 h''(r) <x, stopgrad(||D_r - D_f|| (D_r - D_f))>,

with D_r and D_f the predictions of x_0 by the teacher and by a fake score that learns the generator's samples, and
omega = mean |x - D_r|. The second part vanishes for divergences of the KL type; with ``base`` off both go, and the
direction of f-distill, h(r) <x, stopgrad(D_f - D_r)>, comes in their place. The ratio carries no gradient.

* *discriminator*: the encoder of the fake score, with a head; cross entropy of real and generated samples at the noise
  level of the denoising loss. In the generator's turn its logit at the sample that both scores see gives r, and an
  adversarial loss;
* *phases*: first the fake score learns alone, then the generator follows reverse KL until the discriminator is of use;
* *levels* are uniform over the cleanest 80 % of the grid of Karras et al.

``evaluate`` adds the range of the weights (``h_min``, ``h_max``), and on points the divergence as the discriminator
sees it (``divergence_found``) and as it is (``divergence_exact``), with the correlation of the log ratios. A start from
the generator of SiD is the phase of reverse KL; text to 3D is left out.
"""

from typing import Literal

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.diffusion.blocks import diagnosis
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.density import log_ratios
from kdbench.tracks.diffusion.blocks.fdiv import divergence
from kdbench.tracks.diffusion.blocks.gan import Heads
from kdbench.tracks.diffusion.blocks.identity import BETAS, ScoreIdentity
from kdbench.tracks.diffusion.blocks.instruct import Instruct
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.blocks.ratio import DensityRatio
from kdbench.tracks.diffusion.blocks.turns import alternate
from kdbench.tracks.diffusion.samplers.fewstep import one_step

PAPER = Paper(
    slug="uni_instruct",
    title="Uni-Instruct: One-step Diffusion Model through Unified Diffusion Divergence Instruction",
    year=2025,
    authors=["Yifei Wang", "Weimin Bai", "Colin Zhang", "Debing Zhang", "Weijian Luo", "He Sun"],
    venue="NeurIPS",
    track="diffusion",
    arxiv="2505.20755",
    source="code",
    tasks=["points", "digits", "attributes", "hf"],
    requires=["weights"],
    tags=["one-step", "score-distillation", "adversarial", "f-divergence"],
    claims=[
        Compare(
            metric="mode_l1",
            subject="uni_instruct",
            reference={"method": "uni_instruct", "params": {"divergence": "rkl"}},
            tasks=["grid"],
            note="Forward KL keeps the masses of modes better than reverse KL.",
        ),
        Compare(
            metric="fd",
            subject="uni_instruct",
            reference="score_implicit_matching",
            tasks=["digits"],
            note="Forward KL with the adversarial loss is better than score implicit matching alone.",
        ),
        Compare(
            metric="fd",
            subject="uni_instruct",
            reference={"method": "uni_instruct", "params": {"base": False}},
            tasks=["digits"],
            note="The part of score implicit matching is better than the direction of f-distill.",
        ),
    ],
    departures=[
        "the ratio is exp(logit), clipped and of mean 1 at a noise level, in the place of a transform of the GAN loss",
        "the loss of the discriminator is not weighed by the noise level",
        "warm-up is 5 % of the updates for the fake score and 5 % of reverse KL, not 100k images each",
        "learning rates are 2e-4 and 4e-4, not 1e-5: there are some hundred updates",
    ],
)


class UniInstructParams(Params):
    """Divergence, ratio, phases, and the two networks."""

    divergence: Literal["rkl", "kl", "jf", "js", "chi2"] = Field(
        "kl", description="reverse, forward KL, Jeffreys, Jensen-Shannon or chi^2"
    )
    base: bool = Field(True, description="the part of score implicit matching; otherwise the direction of f-distill")
    second: Literal["code", "theorem"] = Field(
        "code", description="second part: ||gap|| as in the released code, or ||gap||^2 / (2 level^2) of theorem 3.2"
    )
    gan_weight: float = Field(0.01, ge=0, le=100, description="weight of the generator's adversarial loss")
    gan_critic_weight: float = Field(1.0, gt=0, le=100, description="weight of the discriminator's loss")
    hidden: int = Field(64, ge=0, le=4096, description="width of the discriminator's head; 0: one layer")
    alone: float = Field(0.05, ge=0, le=0.5, description="share of the steps in which the fake score learns alone")
    warmup: float = Field(0.05, ge=0, le=1, description="share of the generator's updates that are reverse KL at first")
    ratio_least: float = Field(0.1, gt=0, le=1, description="least density ratio")
    ratio_most: float = Field(20.0, ge=1, le=1e4, description="largest density ratio")
    ratio_rate: float = Field(0.5, ge=0, lt=1, description="share that the mean ratio of a noise level keeps")
    ratio: int = Field(1, ge=1, le=100, description="updates of the fake score for each of the generator")
    lr: float = Field(2e-4, gt=0, le=1, description="learning rate of the generator; the paper: 1e-5")
    critic_lr: float = Field(4e-4, gt=0, le=1, description="learning rate of the fake score; the paper: 1e-5")
    scale: float = Field(100.0, gt=0, le=1e6, description="factor of the generator's loss, a sum over pixels")
    start: float = Field(0.0, ge=0, le=1000, description="time at which the generator is called; 0: the task's")
    guidance: float = Field(0.0, ge=0, le=50, description="scale of the teacher's guidance; 0: the task's")
    least: float = Field(0.0, ge=0, le=0.5, description="cleanest level that is compared, as a share of the grid")
    most: float = Field(0.8, ge=0.6, le=1, description="noisiest level that is compared, as a share of the grid")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged generator")


@hookimpl
def train(task, params):
    generator, network, notes, kind = task.student(), task.score_network(), Notes(), divergence(params.divergence)
    judged = params.gan_weight > 0 or not kind.constant
    heads = None
    if judged:
        with task.seeded("heads"):
            heads = task.place(Heads(network.channels, hidden=params.hidden))
    critic = Critic(network, lr=params.critic_lr, modules=[heads] if judged else [], betas=BETAS)
    bounds = {"least": params.ratio_least, "most": params.ratio_most}
    ratio = DensityRatio(task.process, rate=params.ratio_rate, **bounds)
    start = params.start or task.sigma_init
    alone = int(task.budget.steps() * params.alone) if params.alone else 0
    updates = (task.budget.steps() - alone) // (params.ratio + 1)
    instruct = Instruct(
        kind,
        task.process,
        ratio,
        base=params.base,
        theorem=params.second == "theorem",
        warmup=int(updates * params.warmup),
        notes=notes,
    )
    turns = ScoreIdentity(
        task,
        generator,
        critic,
        instruct.objective,
        times=[start],
        least=params.least,
        most=params.most,
        guidance=params.guidance or task.guidance,
        scale=params.scale,
        heads=heads,
        gan_weight=params.gan_weight,
        gan_critic_weight=params.gan_critic_weight,
        notes=notes,
    )
    if alone:
        turns.learn_alone(task, alone, lr=params.critic_lr)
    result = alternate(
        task,
        generator,
        critic,
        turns.critic_loss,
        turns.generator_loss,
        ratio=params.ratio,
        real=judged,
        lr=params.lr,
        betas=BETAS,
        ema=params.ema,
        notes=notes,
        state=[ratio, instruct, instruct.range],
    )
    values = instruct.range.read()
    if judged and task.spec.data.kind == "points":
        found = log_ratios(task, generator, [start], network, heads, ratio)
        values |= found.summary() | found.divergences(kind)
    diagnosis.leave_values(task, values)
    return one_step(result.ema, start)


@hookimpl
def evaluate(task, model):
    return task.score(model) | diagnosis.found(task)
