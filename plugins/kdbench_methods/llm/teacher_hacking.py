"""Teacher hacking: a student may come closer to its teacher and farther from the truth.

Tiapkin, Calandriello, Ferret, Perrin, Vieillard, Ramé and Blondel, ICML 2025. A teacher p is only a proxy of the true
distribution; optimised for long enough against it, a student q can fit p's mistakes (Goodhart's law). To see it, the
truth has to be known, and so there are three models:

* the *oracle* o is the truth: here the task's own, well-trained teacher;
* the *teacher* p is smaller, pre-trained, and fine-tuned on a finite set of the oracle's responses;
* the *student* q is fine-tuned on the same set (stage 1), then distilled from p (stage 2),

    min_q  E_x E_y sum_t D(p(. | x, y_<t), q(. | x, y_<t)),      D forward KL, reverse KL or Jensen-Shannon.

What differs between the arms is only who writes y and when: *offline*, fixed before training, by p or o;
*online*, p or q writes new responses all the time; in between, ``completions`` fixed responses to each prompt, which
the passes take in turn, or fewer prompts (``prompt_fraction``), repeated so that a pass stays as long. Optimizer steps,
prompts, order and everything else are the same.

Distances to p and o are watched on held-out prompts with the whole next-token distribution at every token:

    proxy = D(p, q),   golden = D(o, q),    forward KL on responses of p and o respectively, reverse KL on those of q.

Teacher hacking is a golden distance that rises while the proxy still falls; the hacking gap is the final golden
distance minus its least. Without an oracle it shows as a proxy distance that leaves its power law, log proxy =
a - b log step, fitted to the early steps. ``evaluate`` adds these numbers; ``curves.json`` has the curves.

At CPU scale the truth is a network of a million parameters and the responses are short; whether hacking appears
depends on the number of passes, which the limit of steps decides: ``prompts`` sets it.
"""

import json
from functools import partial
from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.losses.divergences import divergence
from kdbench.losses.tokens import tok_mean
from kdbench.tracks.llm.blocks.completions import Passes, write
from kdbench.tracks.llm.blocks.distances import Watch
from kdbench.tracks.llm.blocks.imperfect import disjoint_rows, imperfect_teacher
from kdbench.tracks.llm.networks.models import scored_logits
from kdbench.training.curves import power_law, rise_while_falling, setback, turning_point
from kdbench.training.distill import hard_loss

PAPER = Paper(
    slug="teacher_hacking",
    title="On Teacher Hacking in Language Model Distillation",
    year=2025,
    authors=[
        "Daniil Tiapkin",
        "Daniele Calandriello",
        "Johan Ferret",
        "Sarah Perrin",
        "Nino Vieillard",
        "Alexandre Ramé",
        "Mathieu Blondel",
    ],
    venue="ICML",
    track="llm",
    arxiv="2502.02671",
    source="paper",
    tasks=["instruct", "text"],
    requires=["logits", "samples"],
    tags=["analysis", "off-policy", "on-policy", "divergence", "data-diversity"],
    claims=[
        Compare(
            metric="hacking_gap",
            subject="teacher_hacking",
            reference=0.0,
            tasks=["instruct"],
            note="On a fixed set of responses the student is hacked: its distance to the oracle rises again.",
        ),
        Compare(
            metric="hacking_gap",
            subject="teacher_hacking",
            reference={"method": "teacher_hacking", "params": {"data": "online_teacher"}},
            tasks=["instruct"],
            note="Fixed responses are hacked more than fresh ones of the teacher.",
        ),
        Compare(
            metric="hacking_gap",
            subject="teacher_hacking",
            reference={"method": "teacher_hacking", "params": {"data": "online_student"}},
            tasks=["instruct"],
            note="Fixed responses are hacked more than fresh ones of the student.",
        ),
        Compare(
            metric="hacking_gap",
            subject={"method": "teacher_hacking", "params": {"data": "online_teacher"}},
            reference=0.0,
            tasks=["instruct"],
            kind="noninferior",
            margin=0.01,
            direction="min",
            note="With fresh responses of the teacher there is no teacher hacking.",
        ),
        Compare(
            metric="hacking_gap",
            subject={"method": "teacher_hacking", "params": {"data": "online_student"}},
            reference=0.0,
            tasks=["instruct"],
            kind="noninferior",
            margin=0.01,
            direction="min",
            note="With fresh responses of the student there is no teacher hacking.",
        ),
        Compare(
            metric="hacking_gap",
            subject={"method": "teacher_hacking", "params": {"completions": 4}},
            reference="teacher_hacking",
            tasks=["instruct"],
            direction="min",
            note="More responses to each prompt reduce the gap.",
        ),
        Compare(
            metric="hacking_gap",
            subject="teacher_hacking",
            reference={"method": "teacher_hacking", "params": {"prompt_fraction": 0.2}},
            tasks=["instruct"],
            direction="min",
            note="More diverse prompts reduce the gap.",
        ),
    ],
    departures=[
        "oracle, teacher and student are the task's decoders and a smaller one, not encoder-decoders of the T5 family",
        "the student starts from the task's own initialisation, which has seen references, as for every other method",
        "the distances are watched at evenly spaced steps, about one per pass at the defaults, not at pass boundaries",
    ],
)


class TeacherHackingParams(Params):
    """The arm, the loss, the imperfect teacher, and what is watched."""

    data: Literal["offline_teacher", "offline_oracle", "online_teacher", "online_student"] = Field(
        "offline_teacher", description="who writes the responses, and whether they stay as they are"
    )
    prompts: int = Field(500, ge=1, le=10_000_000, description="to distill on, beside those of stage 1")
    prompt_fraction: float = Field(1.0, gt=0, le=1, description="of these prompts, repeated to the same length")
    completions: int = Field(1, ge=1, le=1000, description="fixed responses to each prompt, offline")
    loss: Literal["fkl", "rkl", "jsd", "ce"] = Field(
        "fkl", description="token-level D(p, q); ce: goes on with fine-tuning on the responses, without p's logits"
    )
    beta: float = Field(0.5, ge=0, le=1, description="jsd: weight of the teacher in the mixture")
    sft_share: float = Field(0.2, ge=0, lt=1, description="of the student's steps that stage 1 takes")
    sft_prompts: int = Field(2000, ge=1, le=10_000_000, description="of stage 1, at most half of the training data")
    teacher_layers: int = Field(4, ge=1, le=96, description="layers of p")
    teacher_width: int = Field(112, ge=8, le=16384, description="width of p, a multiple of its four heads")
    teacher_lm_steps: float = Field(
        3.0, ge=0, le=1000, description="pre-training of p on the task's text, as a multiple of the task's steps"
    )
    teacher_sft_steps: float = Field(
        2.0, gt=0, le=1000, description="fine-tuning of p on the oracle's responses, as a multiple of the task's steps"
    )
    teacher_lr: float = Field(2e-3, gt=0, le=1, description="peak learning rate of p; batches of 16")
    sampling_temperature: float = Field(1.0, gt=0, le=10, description="at which responses are written")
    max_new: int = Field(24, ge=1, le=4096, description="longest response in tokens")
    watched: int = Field(64, ge=1, le=100_000, description="validation prompts that the distances are taken on")
    points: int = Field(12, ge=2, le=1000, description="of the curves, the start not counted")
    early: float = Field(0.5, gt=0, le=1, description="share of the points that the power law is fitted to")


@hookimpl
def train(task, params):
    if params.teacher_width % 4:
        raise UsageError(f"teacher_width: {params.teacher_width} is not a multiple of the four heads")
    student, total = task.student(), int(task.budget.remaining("steps"))
    options = {"max_new": params.max_new, "temperature": params.sampling_temperature}
    first_rows, rows = disjoint_rows(task, params.sft_prompts, params.prompts)
    teacher, responses = imperfect_teacher(
        task,
        first_rows,
        layers=params.teacher_layers,
        width=params.teacher_width,
        lm_steps=round(params.teacher_lm_steps * total),
        sft_steps=max(1, round(params.teacher_sft_steps * total)),
        lr=params.teacher_lr,
        **options,
    )
    first = min(round(params.sft_share * total), total - 1)
    if first:
        task.fit(student, hard_loss(task), loader=task.loader(responses), steps=first, tag="sft")

    who, when = {
        "offline_teacher": (teacher, "never"),
        "offline_oracle": (task.teacher(), "never"),
        "online_teacher": (teacher, "pass"),
        "online_student": (student, "batch"),
    }[params.data]
    batches = Passes(
        rows[: max(1, round(params.prompt_fraction * len(rows)))],
        task.spec.recipe.batch_size,
        partial(write, task, who, generator=task.generator("responses"), **options),
        task.generator("order"),
        fresh=when,
        completions=params.completions,
        slots=len(rows),
        device=task.device,
    )
    distance = None
    if params.loss != "ce":
        distance = divergence(params.loss, **({"beta": params.beta} if params.loss == "jsd" else {}))

    def loss(model, batch):
        if distance is None:
            return {"ce": tok_mean(task.nll(model, batch))}
        with torch.no_grad():
            target = scored_logits(teacher, batch).float()
        task.budget.spend("teacher_queries", len(batch))
        return {params.loss: tok_mean(distance(scored_logits(model, batch).float(), target))}

    watch = Watch(task, teacher, prompts=params.watched, **options)
    steps = total - first
    every = max(1, steps // params.points)

    def on_step(step):
        if step % every == 0 or step == steps:
            watch(student, step, step / len(batches))

    watch(student, 0, 0.0)
    task.fit(student, loss, loader=batches, steps=steps, on_step=on_step, state=[watch])
    task.artifact("curves.json").write_text(json.dumps({"early": params.early, "points": watch.points}))
    return student


@hookimpl
def evaluate(task, model):
    record = json.loads(task.artifact("curves.json").read_text())
    points = record["points"]
    curves = {name: [point[name] for point in points] for name in points[0]}
    turn = turning_point(curves["golden_fkl"])
    law = {}
    if len(points) > 3:  # the start has no place on a logarithmic axis, and two points fit any law
        law = power_law(curves["step"][1:], curves["proxy_fkl"][1:], record["early"])
    return task.score(model) | {
        **{name: values[-1] for name, values in curves.items() if name.endswith("kl")},
        "hacking_gap": setback(curves["golden_fkl"]),
        "hacking_gap_rkl": setback(curves["golden_rkl"]),
        "teacher_hacking": rise_while_falling(curves["golden_fkl"], curves["proxy_fkl"]),
        "teacher_hacking_rkl": rise_while_falling(curves["golden_rkl"], curves["proxy_rkl"]),
        "turning_epoch": curves["epoch"][turn],
        "epochs": curves["epoch"][-1],
        **{f"power_law_{name}": value for name, value in law.items()},
    }
