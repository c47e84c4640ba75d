"""OPSD: on-policy self-distillation, one model that is student and teacher under two contexts.

Zhao et al., 2026. The student q(. | x) answers the plain prompt x. The teacher is the same network behind the
prompt with a reference solution s in front; it scores the student's own response y, token by token, and

    L = mean_t JSD_beta( q(. | x, y_<t) || p(. | s, x, y_<t) ),    both at temperature tau,

has no gradient through the teacher nor through the sampling. Every token gets a signal, and one response a prompt is
enough, where reinforcement learning needs a group. ``teacher`` says whose weights the teacher has: those of the start
(``fixed``; with ``rank`` > 0 the student trains adapters alone, and the teacher is the network without them), an
average (``ema``), or those of the moment (``live``). ``form: sampled`` is the policy gradient on the sampled tokens.
With ``reason_first`` the teacher first writes an explanation behind the reference, which stays in its context.

``evaluate`` adds how often the student is right behind a reference (``acc_with_reference``), the divergence from the
teacher on early and late tokens, and the loss of the live teacher with an empty reference, which is 0.
"""

from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.divergences import jsd
from kdbench.losses.tokens import tok_mean
from kdbench.tracks.reasoning_rl.blocks.handles import Handle, with_adapters
from kdbench.tracks.reasoning_rl.blocks.opd import on_teacher_support, per_token
from kdbench.tracks.reasoning_rl.blocks.recipes import fit_on_policy
from kdbench.tracks.reasoning_rl.blocks.scoring import token_logits

PAPER = Paper(
    slug="opsd",
    title="Self-Distilled Reasoner: On-Policy Self-Distillation for Large Language Models",
    year=2026,
    authors=[
        "Siyan Zhao",
        "Zhihui Xie",
        "Mengchen Liu",
        "Jing Huang",
        "Guan Pang",
        "Feiyu Chen",
        "Aditya Grover",
    ],
    arxiv="2601.18734",
    track="reasoning_rl",
    source="code",
    tasks=["*"],
    requires=["labels"],
    tags=["on-policy", "self-distillation", "privileged-information"],
    claims=[
        Compare(
            metric="acc",
            subject="opsd",
            reference="grpo",
            tasks=["mixed"],
            kind="noninferior",
            margin=0.02,
            note="The accuracy of group-relative policy optimisation is reached ...",
        ),
        Compare(
            metric="generated_tokens",
            subject="opsd",
            reference="grpo",
            tasks=["mixed"],
            kind="ratio",
            margin=0.25,
            note="... with at most a quarter of its generated tokens.",
        ),
        Compare(
            metric="entropy",
            subject="opsd",
            reference={"method": "opsd", "params": {"teacher": "live"}},
            tasks=["mixed"],
            note="A live teacher drifts: the entropy of the policy falls faster than with the weights of the start.",
        ),
        Compare(
            metric="empty_reference_loss",
            subject="opsd",
            reference=0.0,
            tasks=["minireason"],
            kind="noninferior",
            margin=1e-6,
            direction="min",
            note="Without a reference the live teacher is the student.",
        ),
    ],
    departures=[
        "procedural problems have no free text: the marker behind the reference is the transition instruction",
        "the whole network is trained by default; rank sets adapters as the released code trains them",
        "responses are sampled from the whole distribution; the released settings cut it at top-p 0.95 and top-k 20",
    ],
)


class OpsdParams(Params):
    """The teacher's weights and context, and the loss."""

    teacher: Literal["fixed", "ema", "live"] = Field(
        "fixed", description="weights of the teacher: of the start, an average, or the student's own"
    )
    decay: float = Field(0.999, ge=0, lt=1, description="of the average, at every step")
    form: Literal["jsd", "sampled"] = Field("jsd", description="divergence of distributions, or policy gradient")
    beta: float = Field(0.5, ge=0, le=1, description="of the divergence; 0: forward KL, 1: reverse KL")
    temperature: float = Field(1.1, gt=0, le=10, description="of both distributions in the loss")
    top_k: int = Field(0, ge=0, le=100000, description="tokens of the teacher's that the divergence is over; 0: all")
    rank: int = Field(0, ge=0, le=1024, description="of adapters that alone are trained; 0: the whole network")
    alpha: float = Field(128.0, gt=0, le=4096, description="scale of the adapters")
    reason_first: bool = Field(False, description="the teacher explains the reference before it scores")
    group: int = Field(1, ge=1, le=256, description="responses a prompt")
    sampling_temperature: float = Field(1.0, gt=0, le=10, description="at which they are sampled")
    max_new: int = Field(48, ge=1, le=65536, description="tokens of a response at most, the task's limit if less")


def contexts(task, handle, rollouts, reason_first):
    """Ids of the teacher's prompts, one for each response: the question behind its solution."""
    texts = [task.with_reference(problem) for problem in rollouts.problems]
    if reason_first:
        with handle.without_adapters():
            reasons = task.sample(handle.model, task.encode(texts), temperature=0.0)
        said = task.decode(reasons)
        texts = [task.with_reasons(problem, text) for problem, text in zip(rollouts.problems, said, strict=True)]
    return task.encode(texts)


def distillation(form, student, teacher, targets, *, beta, temperature, top_k):
    """Losses (N,) of logits (N, V) of the plain prompt and of the teacher's on sampled tokens (N,)."""
    student, teacher = on_teacher_support(student, teacher, top_k)
    return per_token(form, student, teacher, targets, beta=beta, temperature=temperature)


@hookimpl
def train(task, params):
    student = task.student()
    if params.rank > 0 and not hasattr(student, "disable_adapter"):
        with task.seeded("adapters"):
            student = with_adapters(student, params.rank, params.alpha)
    handle = Handle(student, params.teacher, decay=params.decay)

    def loss(model, rollouts):
        behind = rollouts.context(contexts(task, handle, rollouts, params.reason_first), task.pad)
        values = distillation(
            params.form,
            token_logits(model, rollouts.batch),
            handle.logits(task, behind),
            rollouts.targets,
            beta=params.beta,
            temperature=params.temperature,
            top_k=params.top_k,
        )
        return {"distillation": tok_mean(values)}

    fit_on_policy(
        task,
        student,
        loss,
        group=params.group,
        temperature=params.sampling_temperature,
        max_new=min(params.max_new, task.max_new),
        state=handle.state,
        on_step=handle.step,
    )
    return student.merge_and_unload() if params.rank > 0 else student


@torch.no_grad()
def looks(task, model, params):
    """What a reference does for the trained student on validation problems, and where the divergence is."""
    problems, generator = task.problems("val"), task.generator("looks")
    told = [task.with_reference(problem) for problem in problems]
    right = task.accuracy(model, problems, samples=2, prompts=told, generator=generator)
    rollouts = task.rollouts(model, problems, generator=generator)
    first, handle = Handle(task.student(), "fixed"), Handle(model, "live")
    plain = token_logits(model, rollouts.batch)
    empty = rollouts.context(task.encode([task.with_reference(p, "") for p in problems]), task.pad)
    identity = jsd(plain, handle.logits(task, empty), temperature=params.temperature)
    behind = rollouts.context(task.encode(told), task.pad)
    values = jsd(plain, first.logits(task, behind), temperature=params.temperature)
    place = torch.cat([torch.arange(int(n)) / int(n) for n in rollouts.lengths]).to(values.device)
    return {
        "acc_with_reference": float(right.mean()),
        "empty_reference_loss": float(identity.abs().max()),
        "divergence_early": float(values[place < 0.5].mean()),
        "divergence_late": float(values[place >= 0.5].mean()) if bool((place >= 0.5).any()) else 0.0,
    }


@hookimpl
def evaluate(task, model, params):
    return task.score(model) | looks(task, model, params)
