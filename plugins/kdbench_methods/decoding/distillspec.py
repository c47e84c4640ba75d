"""DistillSpec: a draft is distilled from the target before it speculates for it.

Zhou, Lyu, Rawat, Menon, Rostamizadeh, Kumar, Kagy and Agarwal, ICLR 2024. The chance that a proposal is accepted at a
context is sum_v min(p(v), q(v)) = 1 - TVD(p, q), so a draft that is closer to the target is worth more tokens per
forward. The draft q minimises

    E_{x, y ~ D(x)} [ 1/|y| sum_t Div(p(. | x, y_<t), q(. | x, y_<t)) ].

Two choices matter. *Data* D: the ground truth (``gt``), samples of the target made before training (``teacher``),
samples of the draft as it is now (``student``: no gradient goes through the sampling), or ``mixed``: those of the draft
with probability lambda, the data else. *Divergence*: forward KL, reverse KL, Jensen-Shannon, total variation; which is
best depends on the task and on how is decoded, so short trainings are compared by acceptance on validation data.

Lossy decoding accepts a proposal x with probability min(1, g(p(x)) / q(x)) for g(p) = p / eps, p / eps^2 or p^eps, and
trades quality for forwards. ``two_stage`` distils a smaller target from the task's target first, and then the draft
from that: much faster, and no longer the same text.

``evaluate`` adds acceptance, exact and counted, block efficiency by proposals a round, and the curve of lossy decoding
(artifact ``lossy.json``); predicted and measured speed-up are in ``speedup.json``. What cannot be seen at this scale:
a forward of the draft costs nearly as much time as one of the target, so clocks show no gain where tokens do.
"""

import json
from itertools import product
from typing import Literal

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.losses.divergences import divergence
from kdbench.tracks.decoding.blocks.drafts import acceptance, draft_loss, lossy_curve, report, staged_report
from kdbench.tracks.decoding.blocks.sources import DATA, Sources
from kdbench.tracks.decoding.decoders.companions import OwnTarget
from kdbench.tracks.decoding.decoders.speculative import Speculative
from kdbench.tracks.llm.spec import Net
from kdbench.training.distill import distillation_loss
from kdbench.training.halving import successive_halving, winner

PAPER = Paper(
    slug="distillspec",
    title="DistillSpec: Improving Speculative Decoding via Knowledge Distillation",
    year=2024,
    authors=[
        "Yongchao Zhou",
        "Kaifeng Lyu",
        "Ankit Singh Rawat",
        "Aditya Krishna Menon",
        "Afshin Rostamizadeh",
        "Sanjiv Kumar",
        "Jean-François Kagy",
        "Rishabh Agarwal",
    ],
    venue="ICLR",
    track="decoding",
    arxiv="2310.08461",
    source="paper",
    tasks=["arith", "listops", "docs", "hf"],
    requires=["logits"],
    tags=["speculative", "on-policy", "divergence", "lossy"],
    claims=[
        Compare(
            metric="alpha_exact",
            subject="distillspec",
            reference="sd_init",
            tasks=["arith", "listops", "docs"],
            note="More proposals of the distilled draft are accepted than of one trained on the ground truth.",
        ),
        Compare(
            metric="block_efficiency",
            subject={"method": "distillspec", "params": {"choose_for": "greedy"}},
            reference="sd_init",
            tasks=["arith", "listops", "docs"],
            note="Where options are chosen for greedy decoding, the draft gives more tokens per forward of the target.",
        ),
        Compare(
            metric="acceptance_deviation",
            subject="distillspec",
            reference=0.0,
            tasks=["arith", "listops", "docs"],
            kind="noninferior",
            margin=3.0,
            direction="min",
            note="Counted acceptance is 1 - TVD at the same contexts, within 3 standard errors.",
        ),
        Compare(
            metric="lossy_tau_gain",
            subject="distillspec",
            reference=1.0,
            tasks=["arith", "listops", "docs"],
            note="Lenience trades quality for fewer forwards.",
        ),
    ],
    departures=[
        "samples of the draft are used for several batches: each pool serves refresh of them",
        "a rejected proposal is replaced from norm(max(p - q, 0)) in lossy decoding, too",
        "the divergence is chosen by short trainings on validation prompts, where the paper trains and shows all",
    ],
)

DIVERGENCES = ("fkl", "rkl", "jsd", "tvd")


class DistillSpecParams(Params):
    """The data, the divergence and how they are chosen; lossy decoding; the two stages."""

    data: Literal["auto", "gt", "teacher", "student", "mixed"] = Field(
        "student", description="ground truth, samples of the target, of the draft, or mixed; auto: chosen"
    )
    divergence: Literal["auto", "fkl", "rkl", "jsd", "tvd"] = Field(
        "auto", description="of target and draft at a token; auto: chosen on validation data"
    )
    choose_for: Literal["greedy", "sampling"] = Field(
        "sampling", description="the decoding that options are compared at: acceptance at temperature 0 or 1"
    )
    choice_steps: float = Field(0.5, gt=0, le=10, description="of all trials, as a multiple of the task's steps")
    rungs: int = Field(2, ge=1, le=3, description="rounds of trials; the better half goes on to the next, longer one")
    fraction: float = Field(
        0.5, ge=0, le=1, description="mixed: probability (lambda) of a batch of the draft's samples"
    )
    offline: Literal["gt", "teacher"] = Field("gt", description="mixed: what the other batches are")
    pool: int = Field(64, ge=1, le=65536, description="responses that the draft samples at a time")
    refresh: int = Field(8, ge=1, le=10000, description="batches that are made of them")
    responses: int = Field(512, ge=1, le=1000000, description="of the target, sampled before training")
    sampling_temperature: float = Field(1.0, gt=0, le=10, description="at which target and draft write for training")
    temperature: float = Field(1.0, gt=0, le=100, description="of both distributions in the divergence")
    two_stage: bool = Field(False, description="distil a smaller target first, then the draft from it")
    middle_layers: int = Field(2, ge=1, le=96, description="two_stage: layers of the smaller target")
    middle_width: int = Field(64, ge=8, le=8192, description="two_stage: its width, with heads of middle_head")
    middle_head: int = Field(16, ge=2, le=256, description="two_stage: width of one of its heads")
    middle_steps: float = Field(
        2.0, gt=0, le=100, description="two_stage: its training, a multiple of the task's steps"
    )
    lossy_prompts: int = Field(24, ge=1, le=100000, description="test prompts of the curve of lossy decoding")


# --- training ---------------------------------------------------------------------------------------------------------


def smaller_target(task, params):
    """The first stage: a network between draft and target that learns from the target what it says itself."""
    heads, rest = divmod(params.middle_width, params.middle_head)
    if rest or not heads:
        raise UsageError(f"middle_width is a multiple of middle_head = {params.middle_head}, not {params.middle_width}")
    middle = task.new_student(Net(layers=params.middle_layers, width=params.middle_width, heads=heads))
    steps = max(1, round(params.middle_steps * task.spec.limits["steps"]))
    loss = distillation_loss(task, divergence("fkl"), kd_ratio=0.5)
    task.fit(middle, loss, steps=steps, spend="aux_steps", tag="target", lr=2 * task.spec.recipe.lr)
    return task.share(middle)


@hookimpl
def train(task, params):
    target = smaller_target(task, params) if params.two_stage else task.teacher()
    sources = Sources(
        task,
        target,
        responses=params.responses,
        pool=params.pool,
        refresh=params.refresh,
        fraction=params.fraction,
        offline=params.offline,
        temperature=params.sampling_temperature,
    )

    def distilled(option, steps, **how):
        draft = task.student()
        batches, state = sources.batches(draft, option[0])
        loss = draft_loss(task, target, divergence(option[1]), params.temperature)
        task.fit(draft, loss, loader=batches, steps=steps, state=state, **how)
        return draft

    def trial(option, steps):
        draft = distilled(option, steps, spend="aux_steps", tag=f"trial-{'-'.join(option)}")
        return acceptance(task, draft, target, "val", 0.0 if params.choose_for == "greedy" else 1.0)

    options = list(
        product(
            DATA if params.data == "auto" else [params.data],
            DIVERGENCES if params.divergence == "auto" else [params.divergence],
        )
    )
    limit, chosen = int(task.budget.remaining("steps")), options[0]
    if len(options) > 1:
        total = max(round(params.choice_steps * limit), params.rungs * len(options))
        trials = successive_halving(options, trial, total=total, rungs=params.rungs, keep=0.5)
        chosen = winner(trials).candidate
        seen = [
            {"data": t.candidate[0], "divergence": t.candidate[1], "steps": t.steps, "alpha": t.score} for t in trials
        ]
        task.artifact("choice.json").write_text(json.dumps({"chosen": chosen, "trials": seen}, indent=1) + "\n")
    draft = distilled(chosen, limit)
    gamma = task.spec.evaluation.gamma
    return OwnTarget(draft, target, gamma) if params.two_stage else Speculative(draft, gamma)


# --- evaluation -------------------------------------------------------------------------------------------------------


@hookimpl
def evaluate(task, model, params):
    scores = task.score(model)
    scores |= report(task, model, scores["speedup"])
    if isinstance(model, OwnTarget):
        return scores | staged_report(task, model)
    points = lossy_curve(task, model, ("lin", "sq", "exp"), (0.5, 0.1), params.lossy_prompts)
    task.artifact("lossy.json").write_text(json.dumps(points, indent=1) + "\n")
    most = max(points, key=lambda point: point["tau"])
    return scores | {
        "lossy_tau_gain": most["tau"] / points[0]["tau"],
        "lossy_nll_rise": most["target_nll"] - points[0]["target_nll"],
    }
