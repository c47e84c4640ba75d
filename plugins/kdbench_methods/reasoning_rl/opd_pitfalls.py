"""The many faces of on-policy distillation: one cell of a grid of losses, teachers, students and contexts.

A study of 2026 of when on-policy distillation works, when it fails and why. Each job trains one cell, with the
budget of any method, and explains it; the suite has the grid. Factors:

* ``form``: the loss at every token of the student q's own responses, with the teacher p. ``sampled`` is the policy
  gradient with the advantage ``outcome A - c (log q - log p)``, A being that of GRPO; the others are differentiated:

      trunc     sum_S q [log q - log p]           its gradient has + 1 in the bracket: sum_S grad q is not 0, and
                                                  probability drains out of the student's k best tokens S
      trunc_sg  the bracket held constant         renorm    both normalised on S
      tail      S and one bucket for the rest     inter_sg  on both networks' k best tokens, bracket held constant

* ``teacher``: with reinforcement learning, with fine-tuning alone, of another style (``peer_4``), or the student
  ``self``, with its weights of the start.
* ``start``: the student as it is, before its fine-tuning, or that one ``stabilised`` by half of the steps on the
  teacher's responses.
* ``privileged``: what the teacher alone reads: nothing, this problem's ``reference`` solution, or one ``rule`` for the
  whole run. Every instance has another reference; a rule is the same in all, and can be learned without being told. A
  larger teacher with the reference is one that is too far ahead.

``evaluate`` adds the rate of collapse, the mass of the support, the bias of the gradient against the reverse KL over
the vocabulary, the identity ``grad trunc - grad trunc_sg = grad sum_S q``, the teacher's accuracy behind the student's
prefixes, and what is left of privileged information without it.
"""

from dataclasses import replace
from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.tokens import tok_mean
from kdbench.tracks.reasoning_rl.blocks.handles import Handle
from kdbench.tracks.reasoning_rl.blocks.opd import per_token
from kdbench.tracks.reasoning_rl.blocks.pitfalls import (
    collapse,
    continuations,
    gradient_bias,
    internalised,
    mass_identity,
    rule_followed,
    student_mass,
)
from kdbench.tracks.reasoning_rl.blocks.recipes import fit_on_policy, grpo_terms
from kdbench.tracks.reasoning_rl.blocks.scoring import chosen, frozen_logits, token_logits
from kdbench.tracks.reasoning_rl.blocks.traces import loader_of, traces
from kdbench.training.distill import hard_loss

PAPER = Paper(
    slug="opd_pitfalls",
    title="The Many Faces of On-Policy Distillation: Pitfalls, Mechanisms, and Fixes",
    year=2026,
    authors=["Siqi Zhu", "Xuyan Ye", "Hongyu Lu", "Weiye Shi", "Ge Liu"],
    track="reasoning_rl",
    arxiv="2605.11182",
    source="code",
    tasks=["*"],
    requires=["logits"],
    tags=["on-policy", "divergence", "self-distillation", "analysis"],
    claims=[
        Compare(
            metric="mass_identity",
            subject="opd_pitfalls",
            reference=0.0,
            tasks=["mixed"],
            kind="noninferior",
            margin=1e-6,
            direction="min",
            note="Truncated reverse KL differs from its fix by the gradient of the student's mass, on any batch.",
        ),
        Compare(
            metric="rule_followed",
            subject={"method": "opd_pitfalls", "params": {"teacher": "self", "privileged": "rule"}},
            reference=0.8,
            tasks=["mixed"],
            note="A rule that all problems share is learned: it is followed without being told,",
        ),
        Compare(
            metric="pi_share",
            subject={"method": "opd_pitfalls", "params": {"teacher": "self", "privileged": "reference"}},
            reference=0.2,
            tasks=["mixed"],
            kind="noninferior",
            direction="min",
            note="while of what a reference solution is worth less than a fifth is left without it.",
        ),
    ],
    departures=[
        "a grid is rows of a suite, one cell a job, so that every cell has the budget of a method",
        "a rule is learned where most answers follow it that are right with or without it; few are right in all",
    ],
)


class OpdPitfallsParams(Params):
    """The cell of the grid."""

    form: Literal["trunc_sg", "trunc", "renorm", "tail", "inter_sg", "sampled", "reverse", "forward"] = Field(
        "trunc_sg", description="loss at each token"
    )
    k: int = Field(8, ge=1, le=4096, description="tokens of a support")
    coefficient: float = Field(1.0, gt=0, le=100, description="weight c of the divergence")
    outcome: float = Field(0.0, ge=0, le=100, description="weight of the verifier's group advantage; 0: none")
    teacher: Literal["teacher_rl", "teacher_sft", "peer_4", "self"] = Field("teacher_rl", description="who teaches")
    start: Literal["student", "base", "stabilised"] = Field("student", description="which student is trained")
    privileged: Literal["none", "reference", "rule"] = Field("none", description="what the teacher alone reads")
    rule: Literal["comma", "reverse"] = Field("comma", description="the rule: no semicolon, or answers backwards")
    group: int = Field(8, ge=1, le=256, description="responses a problem")
    temperature: float = Field(1.0, gt=0, le=10, description="at which they are sampled")


def start_of(task, params, *, trainable):
    name = "student_sft" if params.start == "student" else "student_base"
    if trainable:
        return task.student() if params.start == "student" else task.checkpoint(name, trainable=True)
    return task.checkpoint(name)


def contexts(task, params, problems):
    """Prompts of the teacher."""
    if params.privileged == "reference":
        return [task.with_reference(problem) for problem in problems]
    return [task.prompt(problem, params.rule if params.privileged == "rule" else None) for problem in problems]


def batch_of(task, params, rollouts):
    """The student's responses behind the teacher's prompts."""
    if params.privileged == "none":
        return rollouts.batch
    return rollouts.context(task.encode(contexts(task, params, rollouts.problems)), task.pad)


@hookimpl
def train(task, params):
    student = start_of(task, params, trainable=True)
    if params.start == "stabilised":
        written = traces(task, task.teacher(), 1024, temperature=0.6, verified=False)
        batches = loader_of(task, written, 8 * task.spec.recipe.batch_size)
        steps = min(task.budget.steps(0.5), int(task.budget.remaining()) - 1)
        task.fit(student, hard_loss(task), loader=batches, steps=steps, tag="sft")
    if params.teacher == "self":
        handle = Handle(student, "fixed")
    else:
        teacher = task.checkpoint(params.teacher)

    def told(batch):
        return handle.logits(task, batch) if params.teacher == "self" else frozen_logits(task, teacher, batch)

    def under_rule(rollouts):
        """The student is not told of the rule, but judged by it."""
        again = task.judged(rollouts.problems, rollouts.prompts, rollouts.responses, rule=params.rule, metered=False)
        return replace(rollouts, verdicts=again.verdicts, reward=again.reward)

    def loss(model, rollouts):
        theirs, logits = told(batch_of(task, params, rollouts)), token_logits(model, rollouts.batch)
        task.note(support_mass=student_mass(logits, params.k).mean())
        values = per_token(params.form, logits, theirs, rollouts.targets, k=params.k)
        parts = {"kd": params.coefficient * tok_mean(values)}
        if params.outcome:
            logp = chosen(logits, rollouts.targets, rollouts.temperature)
            parts["policy"] = params.outcome * grpo_terms(rollouts, logp)
        return parts

    edit = under_rule if params.privileged == "rule" else None
    fit_on_policy(task, student, loss, edit=edit, group=params.group, temperature=params.temperature)
    return student


@hookimpl
def evaluate(task, model, params):
    found, problems = task.score(model), task.problems("test")
    before = start_of(task, params, trainable=False)
    teacher = before if params.teacher == "self" else task.checkpoint(params.teacher)
    generator, temperature = task.generator("eval"), task.spec.evaluation.temperature
    made = task.rollouts(model, problems, temperature=temperature, generator=generator)
    found["collapse"] = collapse(made)
    found |= continuations(task, teacher, made, (0.25, 0.5, 0.75), temperature=temperature, generator=generator)
    few = made.rows(torch.arange(min(32, len(made))))
    with torch.no_grad():
        logits = token_logits(model, few.batch)
        theirs = frozen_logits(task, teacher, batch_of(task, params, few))
    found["support_mass"] = float(student_mass(logits, params.k).mean())
    found["mass_identity"] = mass_identity(logits, theirs, params.k)
    found |= gradient_bias(model, few, theirs, params.form, params.k)
    if params.privileged != "none":
        rule = params.rule if params.privileged == "rule" else None
        found |= internalised(task, before, model, problems, contexts(task, params, problems), rule=rule)
        followed = None if rule is None else rule_followed(task, model, problems, rule)
        found |= {} if followed is None else {"rule_followed": followed}
    return found
