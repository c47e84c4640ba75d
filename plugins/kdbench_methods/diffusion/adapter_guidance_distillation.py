"""Adapter guidance distillation (AGD): guidance in one evaluation, learned by adapters on a frozen model.

Jensen and Sadat, TMLR 2025. Classifier-free guidance evaluates a model twice a step. Here small adapters in the blocks
of the model learn the result of both, and nothing else of it changes:

* *adapters*: at the self-attention of each block, attention from what the block reads to embeddings of the guidance
  scale w, the noise level and the tokens (``cross``), or a perceptron of their sum (``additive``), is added to what
  the block gives. The last layer is zero at first, so that training begins at the conditional model, bit for bit;
* *trajectories*: the states that training meets are those of guided sampling. For each condition a scale is drawn from
  U(1, 6), the guided sampler is run, and state, time, scale and guided output of every evaluation are stored. Noised
  data, which earlier methods train on, are not what guided sampling goes through (``states="noised"``);
* *loss*: squared error between the stored output and that of one conditional evaluation with the adapters;
* *use*: one evaluation a step, at any scale of the range; the adapters can be switched off, or put onto another
  checkpoint of the same model.

``evaluate`` adds the squared errors of the output against guidance at states of guided sampling and at noised
validation data (``error_trajectory``, ``error_noised``), parameters of the adapters over those of the model
(``adapter_share``), what is left of the base's error on another checkpoint that the adapters are put onto
(``transfer_error``, 1 for adapters that do nothing), and the largest difference that switched off adapters make to
the teacher (``identity_error``). ``scales.json`` has the validated metrics at several scales, of the student and of
guidance itself. At this scale the adapters are a larger share of the model than the paper's 1 to 5 %.
"""

import json
from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.diffusion.blocks.adapters import Adapted, further_trained
from kdbench.tracks.diffusion.blocks.levels import noise_like
from kdbench.tracks.diffusion.blocks.trajectories import (
    Guided,
    disagreement,
    noised_error,
    output_error,
    replaced_errors,
    trajectories,
)
from kdbench.tracks.diffusion.networks.base import guided
from kdbench.tracks.diffusion.processes import spread
from kdbench.tracks.diffusion.samplers.solvers import Solver

PAPER = Paper(
    slug="adapter_guidance_distillation",
    title="Efficient Distillation of Classifier-Free Guidance using Adapters",
    year=2025,
    authors=["Cristian Perez Jensen", "Seyedmorteza Sadat"],
    venue="TMLR",
    track="diffusion",
    arxiv="2503.07274",
    source="code",
    tasks=["attributes"],
    requires=["weights", "samples"],
    tags=["guidance", "adapters", "many-step"],
    claims=[
        Compare(
            metric="fd",
            subject="adapter_guidance_distillation",
            reference={"method": "adapter_guidance_distillation", "params": {"states": "noised"}},
            tasks=["attributes"],
            note="States of guided sampling are better to train on than noised data.",
        ),
        Compare(
            metric="error_trajectory",
            subject="adapter_guidance_distillation",
            reference={"method": "adapter_guidance_distillation", "params": {"states": "noised"}},
            tasks=["attributes"],
            direction="min",
            note="At the states of guided sampling the output is closer to that of guidance.",
        ),
        Compare(
            metric="fd",
            subject="adapter_guidance_distillation",
            reference="teacher",
            tasks=["attributes"],
            kind="ratio",
            margin=1.1,
            note="Samples are about as good as those of guidance itself ...",
        ),
        Compare(
            metric="nfe",
            subject="adapter_guidance_distillation",
            reference="teacher",
            tasks=["attributes"],
            kind="ratio",
            margin=0.5,
            note="... at half the evaluations.",
        ),
        Compare(
            metric="identity_error",
            subject="adapter_guidance_distillation",
            reference=0.0,
            tasks=["attributes"],
            kind="noninferior",
            direction="min",
            note="Without its adapters the trained model is the teacher, bit for bit.",
        ),
    ],
    departures=[
        "embeddings of scale, level and tokens are learned once for all blocks, where the paper has them in each block",
        "the scale is divided by 4 before it is embedded; the released transformer variant multiplies it by 1000",
        "the last layer is zero in both variants; in the released attention adapter that option is the wrong way round",
        "the base is a frozen copy of the teacher, so that evaluations of the student are no queries of the teacher",
        "the error is that of the network's own output: of the velocity here, of the noise in the paper",
    ],
)


class AdapterGuidanceDistillationParams(Params):
    """Trajectories, adapters, loss, and the scale that is evaluated."""

    states: Literal["trajectories", "noised"] = Field(
        "trajectories", description="where the student learns: states of guided sampling, or noised data"
    )
    trajectories: int = Field(
        300, ge=1, le=1000000, description="stored trajectories; the paper: one a class or prompt"
    )
    steps: int = Field(0, ge=0, le=1000, description="steps of the stored trajectories; 0: the task's")
    low: float = Field(1.0, ge=0, le=50, description="least guidance scale in training")
    high: float = Field(6.0, ge=0, le=50, description="largest guidance scale in training")
    arch: Literal["cross", "additive"] = Field("cross", description="adapters: attention to the embeddings, or a sum")
    hidden: int = Field(32, ge=4, le=4096, multiple_of=2, description="width of the adapters; the paper: 256")
    loss: Literal["l2", "l1", "cosine", "noise"] = Field(
        "l2", description="squared or absolute error, or the squared one weighed by disagreement or noise level"
    )
    guidance: float = Field(0.0, ge=0, le=50, description="scale that is evaluated; 0: the task's")
    lr: float = Field(2e-3, gt=0, le=1, description="peak of the learning rate; the paper: 1e-4 for 5000 steps")
    warmup: float = Field(
        0.1, ge=0, lt=1, description="share of the steps in which the rate rises; it falls as a cosine"
    )
    ema: float = Field(0.98, gt=0, lt=1, description="decay of the averaged adapters")


def distillation_loss(process, predicted, batch, kind, conditional=None):
    """Scalar; ``conditional`` is the plain conditional x_0, for ``cosine`` alone."""
    error = output_error(process, predicted, batch.goal, batch.t)
    if kind == "l1":
        return error.abs().mean()
    if kind == "noise":
        return (spread(process.sigma(batch.t), error) * error**2).mean()
    if kind == "cosine":
        weight = disagreement(process, batch.x, conditional, batch.goal, batch.t)
        return (weight * (error**2).flatten(1).mean(1)).mean()
    return (error**2).mean()


def noised_states(task, teacher, params, generator):
    """A function from batches of the data to what is stored of trajectories elsewhere."""

    def made(batch):
        t = task.process.training_times(len(batch), generator).to(batch.x)
        w = (params.low + (params.high - params.low) * torch.rand(len(batch), generator=generator)).to(batch.x)
        x = task.process.noised(batch.x, noise_like(batch.x, generator), t)
        with torch.no_grad():
            return Guided(x, t, guided(teacher, x, t, batch.cond, w), w, batch.cond)

    return made


@hookimpl
def train(task, params):
    teacher, size = task.teacher(), task.spec.recipe.batch_size
    with task.seeded("adapters"):
        base, text = task.score_network(), task.kind.conditions(1, task.generator("text")).embedding
        width = None if text is None else text.shape[-1]
        student = task.place(Adapted(base, task.kind.vocabulary, params.hidden, params.arch, text=width))
    student.scale = params.guidance or task.guidance
    made, loader = noised_states(task, teacher, params, task.generator("noised")), task.train_loader()
    if params.states == "trajectories":
        scales = (params.low, params.high)
        stored = trajectories(task, params.trajectories, guidance=scales, steps=params.steps or None)
        made, loader = (lambda batch: batch), stored.loader(size, task.generator("order"))

    def loss(model, batch):
        batch, conditional = made(batch), None
        if params.loss == "cosine":
            with torch.no_grad():
                conditional = teacher(batch.x, batch.t, batch.cond)
        predicted = model(batch.x, batch.t, batch.cond, w=batch.w)
        return distillation_loss(task.process, predicted, batch, params.loss, conditional)

    schedule = {"schedule": "cosine", "warmup": params.warmup, "final_lr": 0.0}
    result = task.fit(student, loss, loader=loader, lr=params.lr, ema=params.ema, **schedule)
    return Solver(result.ema, task.process.grid(task.spec.evaluation.teacher_steps).tolist())


@torch.no_grad()
def identity_error(task, model):
    """Largest difference between the teacher and the student without its adapters."""
    plain = model.at(model.scale)
    plain.enabled = False
    split = task.split("val")
    x, cond = split.x[:64], split.cond[:64]
    return float(max((plain(x, t, cond) - task.teacher()(x, t, cond)).abs().max() for t in (0.1, 0.5, 1.0)))


@hookimpl
def evaluate(task, model, params):
    network, other = model.network, further_trained(task)
    rows = []
    for scale in sorted({params.low, network.scale, params.high}):
        samplers = {
            "student": Solver(network.at(scale), model.times, "euler"),
            "guided": Solver(task.teacher(), model.times, "euler", guidance=scale),
        }
        rows += [{"scale": scale, "model": name, **task.validate(one)} for name, one in samplers.items()]
    task.artifact("scales.json").write_text(json.dumps(rows, indent=1) + "\n")
    transferred, plain = (noised_error(task, one, other, network.scale) for one in (network.onto(other), other))
    return task.score(model) | {
        **replaced_errors(task, network, network.scale),
        "adapter_share": network.share,
        "transfer_error": transferred / max(plain, 1e-12),
        "identity_error": identity_error(task, network),
    }
