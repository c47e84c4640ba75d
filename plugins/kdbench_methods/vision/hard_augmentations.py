"""HARD: Hard Augmentations for Robust Distillation (Nix, Burg and Sinz, 2023).

A student learns what its teacher says of the training images, and nothing about how the teacher behaves elsewhere: a
shift-equivariant teacher does not make a shift-equivariant student. So an augmentor g learns where the two disagree
while the teacher still knows the class, and the student is distilled there:

    student:    min  CE(z_s(x), y) + T^2 KL(p_t(x) || p_s(x)) + T^2 KL(p_t(x~) || p_s(x~)),     x~ = g(x, eps)
    augmentor:  max  T^2 KL(p_t(x~) || p_s(x~)) - lambda KL(p_t(x) || p_t(x~))

by reparameterised gradients through student *and* teacher, both frozen and in eval mode for that step. It never sees a
label. They take turns by the smoothed disagreement: above ``high`` the student trains alone, below ``low`` the
augmentor does. Augmentors: a learned distribution of affine maps, or learned movements in the latent space of a
variational autoencoder that is trained on the same images before.

``augmentor`` also gives what it is compared with: none (ordinary distillation), random-shift (the shifts of the test
images: an oracle), randaugment. Evaluation adds the accuracy on images at their place, the learned range against the
range of the test images, the share of steps to 90 % of the final validation accuracy, and the trace of disagreement.
"""

import json
from typing import Literal

import torch
from torch import nn

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.losses.logits import cross_entropy, kd_kl
from kdbench.tracks.vision.metrics import accuracy
from kdbench.training.augmentors import AFFINE, VAE, AffineAugmentor, Alternation, FixedAugmentor, LatentAugmentor
from kdbench.training.state import Values

PAPER = Paper(
    slug="hard_augmentations",
    title="HARD: Hard Augmentations for Robust Distillation",
    year=2023,
    authors=["Arne F. Nix", "Max F. Burg", "Fabian H. Sinz"],
    arxiv="2305.14890",
    url="https://github.com/sinzlab/HARD",
    track="vision",
    source="paper",
    tasks=["shifted", "classify"],
    requires=["logits", "weights"],
    tags=["augmentation", "logits", "adversarial"],
    claims=[
        Compare(
            metric="top1",
            subject="hard_augmentations",
            reference={"method": "hard_augmentations", "params": {"augmentor": "none"}},
            tasks=["digits-shifted"],
            note="on shifted images better than distillation without augmentation",
        ),
        Compare(
            metric="top1",
            subject="hard_augmentations",
            reference={"method": "hard_augmentations", "params": {"augmentor": "random-shift"}},
            tasks=["digits-shifted"],
            kind="ratio",
            margin=0.9,
            note="and most of what distillation with the test images' own shifts reaches",
        ),
    ],
    departures=[
        "the validity term and the hysteresis of the turns are our reading; their constants are chosen for this scale",
        "the autoencoder adds its change to the image: its own drawings of 16 pixels are too coarse for the teacher",
    ],
)


class HardAugmentationsParams(Params):
    """Augmentor, turns and weights."""

    augmentor: Literal["affine", "vae", "random-shift", "randaugment", "none"] = Field(
        "affine", description="what is learned, or the fixed augmentation in its place"
    )
    free: list[Literal["shift_x", "shift_y", "rotation", "scale", "shear"]] = Field(
        ["shift_x", "shift_y", "rotation", "scale", "shear"], min_length=1, description="affine: parts that may vary"
    )
    predicted: bool = Field(False, description="affine: a small network gives each image a distribution of its own")
    latent: int = Field(16, ge=1, le=1024, description="vae: size of the code")
    vae_steps: float = Field(1.0, gt=0, le=100, description="vae: steps of its training, as a multiple of the limit")
    radius: float = Field(2.0, gt=0, le=100, description="vae: bound of the movement of each code entry")
    residual: bool = Field(True, description="vae: add the change to the image; else the drawing replaces it")
    reach: int = Field(4, ge=1, le=64, description="random-shift: largest shift, in pixels")
    magnitude: float = Field(0.2, gt=0, le=1, description="randaugment: of every operation")
    temperature: float = Field(2.0, gt=0, le=100, description="of all divergences between student and teacher")
    w_ce: float = Field(0.1, ge=0, description="weight of the cross-entropy on clean images")
    w_clean: float = Field(1.0, ge=0, description="weight of the divergence on clean images")
    w_hard: float = Field(1.0, ge=0, description="weight of the divergence on augmented images")
    validity: float = Field(5.0, ge=0, description="lambda: keeps the teacher's class belief under augmentation")
    low: float = Field(3.0, ge=0, description="disagreement below which the augmentor trains")
    high: float = Field(5.0, gt=0, description="disagreement above which the student trains alone")
    turn: int = Field(5, ge=1, le=1000, description="most steps of the augmentor between two steps of the student")
    lr: float = Field(0.01, gt=0, le=1, description="learning rate of the augmentor, of Adam")


def augmentor_loss(student, teacher, augmentor, x, generator, params):
    """What the augmentor minimises on images (B, 3, P, P), and the disagreement in it; no labels.

    Gradients reach the augmentor through the inputs of both networks.
    """
    moved = augmentor(x, generator)
    theirs = teacher(moved)
    disagreement = directed_kl(theirs, student(moved), params.temperature)
    with torch.no_grad():
        clean = teacher(x)
    return params.validity * directed_kl(clean, theirs, 1.0) - disagreement, disagreement


def directed_kl(p, q, temperature):
    """T^2 KL(softmax(p / T) || softmax(q / T)), mean over the batch, with gradients in *both* (B, C) arguments."""
    log_p, log_q = (logits.float().div(temperature).log_softmax(-1) for logits in (p, q))
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean()


class Adversary:
    """The augmentor's side of the training: its steps, its turns, and what is remembered of them."""

    def __init__(self, task, student, augmentor, params):
        self.task, self.student, self.augmentor, self.params = task, student, augmentor, params
        learned = self.learned()
        self.optimizer = torch.optim.Adam(learned, lr=params.lr) if learned else None
        self.turns = Alternation(params.low, params.high)
        self.generator = task.generator("augmentor")
        self.trace = Values(disagreement=[], steps=[], accuracy=[], latest=0.0)
        self.images = task.split("train").x
        self.every = max(1, task.budget.steps() // 25)

    def learned(self):
        return [parameter for parameter in self.augmentor.parameters() if parameter.requires_grad]

    def state(self):
        kept = [self.augmentor, self.turns, self.trace]
        return [*kept, self.optimizer] if self.optimizer else kept

    def make(self, x):
        """Augmented images for the student, without a graph."""
        with torch.no_grad():
            return self.augmentor(x, self.generator)

    def step(self):
        """One step of the augmentor; the disagreement it met."""
        rows = torch.randperm(len(self.images), generator=self.generator)[: self.task.spec.recipe.batch_size]
        x = self.images[rows.to(self.images.device)]
        loss, disagreement = augmentor_loss(
            self.student, self.task.teacher(), self.augmentor, x, self.generator, self.params
        )
        learned = self.learned()
        for parameter, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.task.budget.spend("aux_steps")
        return float(disagreement.detach())

    def on_step(self, step):
        """After a step of the student: the augmentor's turn, if it is, and the trace."""
        turn = self.turns.see(self.trace.latest)
        if turn and self.optimizer:
            self.student.eval()
            for _ in range(self.params.turn):
                if not self.turns.see(self.step()):
                    break
            self.student.train()
        self.trace.steps.append(self.task.budget.spent["aux_steps"])
        self.trace.disagreement.append(self.turns.smoothed)
        if step % self.every == 0:
            self.trace.accuracy.append(self.task.validate(self.student)["top1"])


def make_augmentor(task, params):
    """The augmentor on the task's device; its autoencoder is trained here. None without augmentation."""
    with task.seeded("augmentor"):
        if params.augmentor == "none":
            return None
        if params.augmentor in ("random-shift", "randaugment"):
            return FixedAugmentor(params.augmentor, reach=params.reach, magnitude=params.magnitude)
        if params.augmentor == "affine":
            return AffineAugmentor(tuple(params.free), predicted=params.predicted).to(task.device)
        try:
            vae = VAE(task.spec.data.size, params.latent).to(task.device)
        except ValueError as error:
            raise UsageError(f"augmentor vae: {error}") from error
        made = LatentAugmentor(vae, params.latent, radius=params.radius, residual=params.residual).to(task.device)
    vae.requires_grad_(True)
    generator, steps = task.generator("vae"), max(1, round(params.vae_steps * task.budget.steps()))
    task.fit(
        vae,
        lambda net, batch: net.loss(batch.x, generator),
        steps=steps,
        spend="aux_steps",
        optimizer="adam",
        lr=2e-3,
        schedule="cosine",
        weight_decay=0.0,
        tag="vae",
    )
    vae.requires_grad_(False)
    return made


@hookimpl
def train(task, params):
    try:
        Alternation(params.low, params.high)
    except ValueError as error:
        raise UsageError(f"low and high: {error}") from error
    student, augmentor, t = task.student(), make_augmentor(task, params), params.temperature
    adversary = Adversary(task, student, augmentor if augmentor is not None else nn.Identity(), params)

    def loss(model, batch):
        theirs = task.teacher_logits(batch)
        if augmentor is None:
            mine = model(batch.x)
            terms, adversary.trace.latest = {}, 0.0
        else:
            moved = adversary.make(batch.x)
            with torch.no_grad():
                far = task.teacher()(moved)
            mine, there = model(torch.cat([batch.x, moved])).split(len(batch))  # one batch: statistics updated once
            hard = kd_kl(there, far, t)
            terms, adversary.trace.latest = {"hard": params.w_hard * hard}, float(hard.detach())
        return {
            "ce": params.w_ce * cross_entropy(mine, batch.y),
            "clean": params.w_clean * kd_kl(mine, theirs, t),
            **terms,
        }

    task.fit(student, loss, on_step=adversary.on_step, state=adversary.state())
    leave(task, adversary, augmentor, params)
    return student


def leave(task, adversary, augmentor, params):
    """What evaluation reads: the trace and the learned ranges."""
    found = {
        "disagreement": adversary.trace.disagreement,
        "aux_steps": adversary.trace.steps,
        "val_top1": adversary.trace.accuracy,
        "every": adversary.every,
        "ranges": augmentor.ranges(task.split("val").x) if params.augmentor in ("affine", "vae") else {},
    }
    if params.augmentor == "vae":
        x = task.split("val").x
        with torch.no_grad():
            found["vae_mse"] = float((augmentor.vae.decoder(augmentor.vae.encode(x)[0]) - x).square().mean())
        found["pixel_variance"] = float(x.var())
    task.artifact("augmentor.json").write_text(json.dumps(found))


def share_of_steps(values, share=0.9):
    """Part of a curve (n values) after which it first reaches a share of its last value, in (0, 1]; 1 if empty."""
    reached = [number for number, value in enumerate(values, 1) if value >= share * values[-1]]
    return reached[0] / len(values) if reached else 1.0


@hookimpl
def evaluate(task, model):
    found = json.loads(task.artifact("augmentor.json").read_text())
    test, size = task.split("test"), task.spec.data.size
    values = task.score(model) | {
        "steps_to_90": share_of_steps(found["val_top1"]),
        "last_disagreement": found["disagreement"][-1],
        "augmentor_steps": found["aux_steps"][-1],
    }
    pixels = {name: found["ranges"][name] * size / 2 for name in AFFINE[:2] if name in found["ranges"]}
    values |= {f"learned_{name}_px": value for name, value in pixels.items()}
    values |= {f"learned_{name}": value for name, value in found["ranges"].items() if name not in pixels}
    values |= {name: found[name] for name in ("vae_mse", "pixel_variance") if name in found}
    if "dx" in test.meta:
        shift = torch.stack([test.meta["dy"], test.meta["dx"]], 1)
        back = torch.stack([x.roll((-dy, -dx), (1, 2)) for x, (dy, dx) in zip(test.x, shift.tolist(), strict=True)])
        values["centred_top1"] = accuracy(task.predict(model, back), test.y)
        true = float(shift.double().std(0, correction=0).mean())
        values["true_shift_px"] = true
        if pixels and true:
            values["range_ratio"] = sum(pixels.values()) / len(pixels) / true
    return values
