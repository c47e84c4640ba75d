"""Hyper-SD: trajectory segmented consistency, feedback and score distillation, in one adapter for 1 to 8 steps.

Ren et al., NeurIPS 2024. A low-rank adapter on the teacher learns, one after the other:

* *segmented consistency* (TSCD, section 3.1): the times are cut into k = 8, 4, 2, 1 equal segments, stage by stage. On
  noised data x_t the teacher makes one guided DDIM step to t'; with s a random time from t' to the end of its segment,
  the jump f(x_t, t, s) is pulled to f'(x_t', t', s), f' being the average of the student's weights. A stage begins with
  the averaged weights of the one before, and its target anew. In the last two stages a discriminator on features of
  the teacher compares the samples that both jumps imply, with a small weight;
* *feedback* (section 3.2): a random late step of the model's own few-step chain is pushed to two frozen rewards,
  aesthetic and perception, each as far as a threshold;
* *score distillation* (section 3.3): the one-step samples follow the gradient of a reverse KL divergence (DMD) between
  the teacher and a critic, and are held near to what the adapter gave before;
* *one adapter* (section 3.4): batches alternate between the numbers of steps, which the model reads beside the time.
  ``separate`` keeps the adapter of each stage for its own number of steps instead.

``evaluate`` adds the validated headline, prompt accuracy and reward at 1, 2, 4 and 8 steps (``<headline>_nfe4``, ...);
``steps.json`` has all metrics, and the curve ``stage/<headline>`` after each stage. The paper fine-tunes separate
models with its rewards on text prompts; here they are classifiers of the task.
"""

import json
from typing import Literal

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.tracks.diffusion.blocks.anysteps import AnySteps, StepAware
from kdbench.tracks.diffusion.blocks.segmented import Segmented, stage_counts
from kdbench.tracks.diffusion.blocks.stages import consistency_training, feedback_training, score_training

PAPER = Paper(
    slug="hyper_sd",
    title="Hyper-SD: Trajectory Segmented Consistency Model for Efficient Image Synthesis",
    year=2024,
    authors=[
        "Yuxi Ren",
        "Xin Xia",
        "Yanzuo Lu",
        "Jiacheng Zhang",
        "Jie Wu",
        "Pan Xie",
        "Xing Wang",
        "Xuefeng Xiao",
    ],
    venue="NeurIPS",
    track="diffusion",
    arxiv="2404.13686",
    source="paper",
    tasks=["digits", "attributes"],
    requires=["weights"],
    tags=["consistency", "score-distillation", "reward", "adapters", "few-step"],
    claims=[
        Compare(
            metric="fd",
            subject={
                "method": "hyper_sd",
                "params": {"feedback": 0.0, "scores": 0.0, "gan_weight": 0.0, "lora": "separate"},
            },
            reference={
                "method": "hyper_sd",
                "params": {"feedback": 0.0, "scores": 0.0, "gan_weight": 0.0, "lora": "separate", "first": 1},
            },
            tasks=["digits", "attributes"],
            note="Segments of 8, 4, 2 and 1 are better at one step than one segment from the start, at equal steps.",
        ),
        Compare(
            metric="fd",
            subject="hyper_sd",
            reference="cd",
            tasks=["digits", "attributes"],
            note="The whole of it is better than consistency distillation.",
        ),
        Compare(
            metric="fd_nfe2",
            subject={"method": "hyper_sd", "params": {"feedback": 0.0, "scores": 0.0}},
            reference={"method": "hyper_sd", "params": {"feedback": 0.0, "scores": 0.0, "lora": "separate"}},
            tasks=["digits", "attributes"],
            kind="ratio",
            margin=1.1,
            direction="min",
            note="One adapter for all numbers of steps is as good at two steps as one of its own ...",
        ),
        Compare(
            metric="fd_nfe4",
            subject={"method": "hyper_sd", "params": {"feedback": 0.0, "scores": 0.0}},
            reference={"method": "hyper_sd", "params": {"feedback": 0.0, "scores": 0.0, "lora": "separate"}},
            tasks=["digits", "attributes"],
            kind="ratio",
            margin=1.1,
            direction="min",
            note="... and at four.",
        ),
        Compare(
            metric="reward",
            subject="hyper_sd",
            reference={"method": "hyper_sd", "params": {"feedback": 0.0}},
            tasks=["attributes"],
            note="Feedback raises the reward of one-step samples.",
        ),
    ],
    departures=[
        "feedback and score distillation train the adapter of the consistency stages, not ones that are merged with it",
        "a hinge at thresholds of our own keeps the rewards from being driven further",
        "the number of steps is read as a second number beside the time; the paper does not say how its model knows it",
        "the discriminator compares clean samples that jumps imply, noised anew, not states at the end of the segment",
        "while one-step samples are distilled, the other numbers of steps go on with their consistency loss",
        "rates are higher and stages shorter: hundreds of updates, not thousands",
    ],
)


class HyperSdParams(Params):
    """Stages, their shares of the steps, rewards, critic and adapter."""

    fraction: float = Field(
        0.4, gt=0, le=1, description="share of the task's steps, as one evaluates up to six networks; at least 100"
    )
    first: int = Field(8, ge=1, le=64, description="segments of the first stage, a power of 2; 1: one segment only")
    grid: int = Field(16, ge=1, le=1000, description="steps that the teacher's flow is cut into")
    lora: Literal["unified", "separate"] = Field(
        "unified", description="one adapter for all numbers of steps, or that of each stage for its own"
    )
    nfe: int = Field(1, ge=1, le=64, description="steps of the sampler that is evaluated; one of the stages'")
    aware: bool = Field(True, description="the model reads the number of steps; needs a network of the track")
    own: float = Field(0.5, ge=0, le=1, description="unified: share of batches that a stage's own number of steps has")
    end: Literal["random", "bound"] = Field("random", description="where jumps go: any time of the segment, or its end")
    feedback: float = Field(0.1, ge=0, le=0.5, description="share of the steps for feedback from rewards; 0: none")
    scores: float = Field(0.3, ge=0, le=0.5, description="share of the steps for score distillation; 0: none")
    metric: Literal["mse", "huber"] = Field("huber", description="distance of the two jumps")
    c: float = Field(1e-3, gt=0, le=10, description="difference above which the Huber distance is straight")
    half_life: float = Field(1000, gt=0, le=1e9, description="images after which weights count half in the target")
    gan_weight: float = Field(0.01, ge=0, le=10, description="of the adversarial loss in the last two stages; 0: none")
    aesthetic: float = Field(
        0.5, ge=-100, le=100, description="reward above which taste, contrast and sharpness are well"
    )
    perception: float = Field(-0.05, ge=-100, le=0, description="log-probability of the prompt that is enough")
    reward_weight: float = Field(0.1, ge=0, le=100, description="of both hinges; the consistency loss is beside them")
    ratio: int = Field(2, ge=1, le=100, description="updates of the critic for each of the generator")
    anchor: float = Field(1.0, ge=0, le=100, description="weight of the squared distance to the samples before")
    guidance: float = Field(0.0, ge=0, le=50, description="scale of the teacher's guidance; 0: the task's")
    rank: int = Field(16, ge=1, le=1024, description="of the adapter")
    lr: float = Field(1e-3, gt=0, le=1, description="learning rate of the adapter")
    critic_lr: float = Field(4e-4, gt=0, le=1, description="learning rate of critic and discriminator")
    ema: float = Field(0.98, gt=0, lt=1, description="decay of the averaged adapter, within a stage")


def split_steps(left, params):
    """Steps of each stage by its number of segments, of feedback and of score distillation.

    A part whose share is less than one update of it is left out, and so are the first stages where there are fewer than
    two updates for each; score distillation needs one of the generator with those of its critic.
    """
    counts, total = stage_counts(params.first), min(left, max(100, int(left * params.fraction)))
    feedback, scores = int(total * params.feedback), int(total * params.scores)
    scores = scores if scores > params.ratio else 0
    rest = total - feedback - scores
    counts = counts[-max(1, rest // 2) :]
    stages = dict.fromkeys(counts, rest // len(counts))
    stages[1] += rest - sum(stages.values())
    return stages, feedback, scores


def stage_of(task, student, counts, params, name, own):
    """The consistency loss of a stage."""
    return Segmented(
        task,
        student,
        counts,
        grid=params.grid,
        name=name,
        guidance=params.guidance or task.guidance,
        half_life=params.half_life,
        end=params.end,
        metric=params.metric,
        c=params.c,
        own=own,
    )


@hookimpl
def train(task, params):
    if task.spec.student.init == "scratch":
        raise UsageError(f"{task.spec.name} has a student with weights of its own; the adapter is one of the teacher's")
    stages, feedback, scores = split_steps(int(task.budget.remaining("steps")), params)
    counts, grid = list(stages), task.process.grid(params.grid).tolist()
    if params.nfe not in stages:
        raise UsageError(f"no stage trains for {params.nfe} steps; there are {', '.join(map(str, counts))}")
    lora = task.generator("lora")
    made = StepAware.around(task.score_network(), params.rank, params.rank, lora, aware=params.aware)
    student, members = task.place(made), {}
    recipe = {"lr": params.lr, "ema": params.ema}
    for number, (count, steps) in enumerate(stages.items()):
        begun = counts[: number + 1] if params.lora == "unified" else [count]
        stage = stage_of(task, student, begun, params, f"stage/{count}", params.own)
        gan = params.gan_weight if number >= len(counts) - 2 and steps > 1 else 0.0
        members[count] = consistency_training(
            task, student, stage, steps, gan=gan, critic_lr=params.critic_lr, **recipe
        )
        headline = task.spec.headline.name
        reached = task.validate(AnySteps(members, grid, count))[headline]
        task.log(count, **{f"stage/{headline}": reached})
    late = {"lr": params.lr / 2, "ema": params.ema}
    if feedback:
        used = counts if params.lora == "unified" else [params.nfe]
        stage = stage_of(task, student, used, params, "feedback/stage", 1 / len(used))
        thresholds = {"aesthetic": params.aesthetic, "perception": params.perception}
        members[params.nfe] = feedback_training(
            task, student, stage, feedback, thresholds=thresholds, weight=params.reward_weight, **late
        )
    if scores:
        others = counts[:-1] if params.lora == "unified" else []
        stage = stage_of(task, student, others, params, "scores/stage", 1 / len(others)) if others else None
        members[1] = score_training(
            task,
            student,
            stage,
            scores,
            ratio=params.ratio,
            anchor=params.anchor,
            guidance=params.guidance or task.guidance,
            critic_lr=params.critic_lr,
            **late,
        )
    if params.lora == "unified":
        members = dict.fromkeys(counts, members[1 if scores else params.nfe])
    return AnySteps(members, grid, params.nfe)


@hookimpl
def evaluate(task, model):
    rows = {count: task.validate(model.at(count)) for count in sorted(model.members)}
    task.artifact("steps.json").write_text(json.dumps(rows, indent=1) + "\n")
    wanted = (task.spec.headline.name, "prompt_accuracy", "reward")
    found = {f"{name}_nfe{count}": row[name] for count, row in rows.items() for name in wanted if name in row}
    return task.score(model) | found
