"""COMPASS: a base policy of one robot, residual specialists of the others, and one generalist that is told its body.

1. *Base.* Demonstrations of one robot train an encoder h = e(o), a head a_b(h) and a world model that predicts the next
   h. Then it is frozen.
2. *Residuals.* For every other robot the head is copied, its last layer set to 0, and trained by PPO with a critic of
   its own: actions are a_b + r with r ~ N(actor(h), s), s = 0.1 at first. The reward is -distance to the goal, -heading
   error x exp(-distance), -change and size of actions; reaching the goal pays, contact costs, and both end the episode.
   At the start of training actions are those of the base, bit for bit.
3. *Records.* Every specialist drives its robot without noise; kept are h, the robot, the mean m_T of the final action,
   and s_T.
4. *Distillation.* The student reads h and a one-hot code of the robot and says m_S, with one deviation s_S for all
   states. Over the dimensions of the action that a robot uses,

    KL(teacher | student) = ln(s_S / s_T) + (s_T^2 + (m_T - m_S)^2) / (2 s_S^2) - 1/2.

Interaction of all stages counts against one limit.
"""

from typing import Literal

import numpy as np
import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.policy.blocks.gaussians import gaussian_kl, masked_mean
from kdbench.tracks.policy.blocks.ppo import Settings
from kdbench.tracks.policy.blocks.residual import Latent, TableLoader, train_base
from kdbench.tracks.policy.blocks.specialists import Records, interaction, record, train_specialists, travel_times

PAPER = Paper(
    slug="compass",
    title="COMPASS: Cross-embodiment Mobility Policy via Residual RL and Skill Synthesis",
    authors=[
        "Wei Liu",
        "Huihua Zhao",
        "Chenran Li",
        "Yuchen Deng",
        "Joydeep Biswas",
        "Soha Pouya",
        "Yan Chang",
    ],
    year=2025,
    track="policy",
    arxiv="2502.16372",
    source="code",
    tasks=["robots"],
    requires=["labels"],
    tags=["reinforcement-learning", "distillation", "multi-teacher"],
    claims=[
        Compare(
            metric="success",
            subject="compass",
            reference="base_policy",
            tasks=["robots"],
            margin=0.05,
            note="the generalist is well above the base policy",
        ),
        Compare(
            metric="success",
            subject="compass",
            reference="specialists",
            tasks=["robots"],
            kind="noninferior",
            margin=0.1,
            note="and within 10 points of the specialists",
        ),
        Compare(metric="success", subject="compass", reference="ppo", tasks=["robots"]),
    ],
    departures=[
        "Observations are a goal, a velocity and a range scan: the encoder is dense, the world model not recurrent.",
        "h has as many numbers as an observation, so that the generalist is the student of the task.",
        "Rewards are scaled, with small weights for heading and actions, which the released configuration leaves out.",
        "Recorded means are clipped to the range of actions, as they are executed.",
    ],
)


class CompassParams(Params):
    """Stages and distillation."""

    distil: Literal["kl", "mse"] = Field("kl", description="divergence of the Gaussians, or squared error of the means")
    code: bool = Field(True, description="false: the generalist is not told which robot it drives")
    foresight: float = Field(0.1, ge=0, le=100, description="weight of the predicted next features")
    residual_share: float = Field(
        0.72, gt=0, le=1, description="of the limit on environment steps, all robots together"
    )
    record_share: float = Field(0.2, gt=0, le=1, description="of the limit on environment steps that are recorded")
    worlds: int = Field(32, ge=1, le=4096, description="episodes side by side in residual learning")
    lr: float = Field(
        3e-4, gt=0, le=0.1, description="learning rate of the residuals at first; it follows the divergence"
    )


def kl_loss(student, batch, coded=True):
    """Mean KL over the dimensions in use and over the records."""
    mean = student(batch.h, batch.robot if coded else None)
    return masked_mean(gaussian_kl(batch.mean, batch.std, mean, student.log_std.exp()), batch.mask)


def mse_loss(student, batch, coded=True):
    """Mean squared error of the means, over the dimensions in use and over the records."""
    mean = student(batch.h, batch.robot if coded else None)
    return masked_mean((mean - batch.mean).square(), batch.mask)


@hookimpl
def train(task, params):
    base = train_base(task, foresight=params.foresight, spend="aux_steps")
    settings = Settings(worlds=params.worlds, lr=params.lr)
    specialised = train_specialists(task, base, env_steps=interaction(task, params.residual_share), settings=settings)
    records = record(task, specialised, env_steps=interaction(task, params.record_share))
    student = task.student()
    student.normalise(records.h.mean(0), records.h.std(0, correction=0).clamp_min(1e-3))
    loader = TableLoader(
        Records, records.columns(), task.spec.recipe.batch_size, task.generator("records"), task.device
    )
    loss = {"kl": kl_loss, "mse": mse_loss}[params.distil]
    task.fit(student, lambda model, batch: loss(model, batch, params.code), loader=loader)
    return Latent(base, student, coded=params.code)


@hookimpl
def evaluate(task, model):
    """Official metrics, weighted travel times, and the success with a code that no robot had in training."""
    found = travel_times(task, model)
    if model.coded:
        control = Latent(model.base, model.network, slot=model.network.codes - 1)
        unseen = [task.rollout(control, "test", robot=robot).success.mean() for robot in task.robots]
        found["success_unseen_code"] = float(np.mean(unseen))
    std = model.network.log_std.detach().exp()
    return task.score(model) | found | {"student_std": float(torch.mean(std))}
