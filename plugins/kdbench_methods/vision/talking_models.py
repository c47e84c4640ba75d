"""Talking Models: Distill Pre-trained Knowledge to Downstream Models via Interactive Communication (Zhao et al., 2023).

A teacher that was trained for another task answers questions instead of being imitated. Each network has a low and a
high state (after a low and a high block), and codecs: an encoder writes a state as a message, a decoder reads a
message as a state. One round, for student g and teacher h:

    m1 = E_g(g_low(x))                         the student tells what it sees
    m2 = E_h(h_up(D_h(m1)))                    the teacher reads it, thinks with its own upper blocks, replies
    y2 = g_rest(D_g(m2))                       the student reads the reply and classifies
    L  = CE(g(x), y) + w_interact CE(y2, y) + w_mc L_MC + w_sc L_SC

L_MC, message consistency: m1 equals the message of the teacher's own low state, m2 that of the student's own high
state. L_SC, state consistency: D_h(m1) equals h_low(x), D_g(m2) equals the student's high state. In a further round the
student's message is that of the state it has read. The teacher is frozen, gradients pass through it to E_g and D_h;
its labels are never used, so that they may differ from the student's. The student is evaluated alone.

Controls with as many extra parameters: ``one-way`` (the teacher sees the image, its message is read by the student)
and ``hint`` (an MLP from the student's to the teacher's high state). Evaluation adds the accuracy of the interactive
path and the cosine of the two networks' messages, both on validation data, and the number of codec parameters.
"""

import json
from typing import Literal

import torch
import torch.nn.functional as F

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.losses.features import hint
from kdbench.losses.logits import cross_entropy
from kdbench.tracks.vision.models.split import pieces, still_norms
from kdbench.training.messages import codec_parameters, codecs_of_size, read_positions, width_of, write_state

PAPER = Paper(
    slug="talking_models",
    title="Talking Models: Distill Pre-trained Knowledge to Downstream Models via Interactive Communication",
    year=2023,
    authors=["Zhe Zhao", "Qingyun Liu", "Huan Gui", "Bang An", "Lichan Hong", "Ed H. Chi"],
    arxiv="2310.03188",
    track="vision",
    source="abstract",
    tasks=["related", "classify", "hetero"],
    requires=["features"],
    tags=["features", "transfer", "communication"],
    claims=[
        Compare(
            metric="top1",
            subject="talking_models",
            reference={"method": "talking_models", "params": {"mode": "one-way"}},
            tasks=["related"],
            note="a student that can ask learns more than one that can only listen, with codecs of equal size",
        ),
        Compare(
            metric="top1",
            subject="talking_models",
            reference={"method": "talking_models", "params": {"mode": "hint"}},
            tasks=["related"],
            note="the gain is not that of additional parameters",
        ),
        Compare(metric="top1", subject="talking_models", reference="no_kd", tasks=["related"]),
    ],
    departures=[
        "written from the abstract and public reviews: choice of blocks, form of codecs and rounds are our reading",
        "codecs of low and of high states are separate, because the widths differ",
        "losses are averaged over rounds; blocks that see decoded states have fixed batch statistics for them",
    ],
)


class TalkingModelsParams(Params):
    """Who talks, where the states are, form of the messages, weights."""

    mode: Literal["two-way", "one-way", "hint"] = Field("two-way", description="who talks; the paper's is two-way")
    teacher: str | None = Field(
        None, description="name of the teacher; null: the task's own, or the one called shape where it has none"
    )
    finetune: bool = Field(False, description="train a private copy of the teacher along")
    rounds: int = Field(1, ge=1, le=10, description="questions and replies per batch")
    message: int = Field(32, ge=1, le=4096, description="width of a message at each of its positions")
    grid: int = Field(4, ge=1, le=64, description="positions of a message along each side; 1: states are pooled")
    hidden: int = Field(64, ge=1, le=8192, description="width inside the codecs of the two-way form")
    student_low: int | None = Field(None, ge=0, description="block before the student's low state; null: the first")
    student_high: int | None = Field(None, ge=1, description="block before the student's high state; null: the last")
    teacher_low: int | None = Field(None, ge=0, description="block before the teacher's low state; null: the first")
    teacher_high: int | None = Field(None, ge=1, description="block before the teacher's high state; null: the last")
    w_interact: float = Field(1.0, ge=0, le=1e4, description="weight of the interactive path's cross-entropy")
    w_mc: float = Field(0.5, ge=0, le=1e4, description="weight of message consistency")
    w_sc: float = Field(0.5, ge=0, le=1e4, description="weight of state consistency, or of the hint")


# --- codecs -----------------------------------------------------------------------------------------------------------


CODECS = {
    "two-way": ["student_low", "to_teacher", "teacher_high", "to_student", "teacher_low", "student_high"],
    "one-way": ["teacher_high", "to_student", "student_high"],
    "hint": ["regressor"],
}
"""Encoders are called by the state that they write as a message, decoders by who reads."""


def make_codecs(mode, widths, params):
    """The codecs of a mode; those of the controls are as wide as gives them the two-way form's number of parameters.

    ``widths``: of ``student_low``, ``student_high``, ``teacher_low``, ``teacher_high``.
    """
    m = params.message
    shapes = {name: (width, m) for name, width in widths.items()} | {
        "to_teacher": (m, widths["teacher_low"]),
        "to_student": (m, widths["student_high"]),
        "regressor": (widths["student_high"], widths["teacher_high"]),
    }
    wanted = codec_parameters([shapes[name] for name in CODECS["two-way"]], params.hidden)
    return codecs_of_size({name: shapes[name] for name in CODECS[mode]}, wanted)


# --- conversation -----------------------------------------------------------------------------------------------------


def blocks_of(who, network, low, high):
    """The chosen blocks, checked. Raises ``UsageError`` unless 0 <= low < high <= depth."""
    high = network.depth if high is None else high
    low = min(1, high - 1) if low is None else low
    if not low < high <= network.depth:
        raise UsageError(
            f"{who}_low {low} and {who}_high {high}: expected 0 <= low < high <= {network.depth}, the {who}'s blocks"
        )
    return low, high


class Conversation:
    """Student, teacher and codecs; called with a batch of images it gives the terms of the loss."""

    def __init__(self, student, teacher, params):
        self.student, self.teacher, self.params = pieces(student), pieces(teacher), params
        self.at_student = blocks_of("student", self.student, params.student_low, params.student_high)
        self.at_teacher = blocks_of("teacher", self.teacher, params.teacher_low, params.teacher_high)
        self.codecs = None

    @staticmethod
    def states(network, at, x):
        low = network.run(network.embed(x), 0, at[0])
        return low, network.run(low, *at)

    def widths(self, x):
        mine, theirs = self.states(self.student, self.at_student, x), self.states(self.teacher, self.at_teacher, x)
        names = ("student_low", "student_high", "teacher_low", "teacher_high")
        return {name: width_of(state) for name, state in zip(names, (*mine, *theirs), strict=True)}

    def rest(self, state):
        """The student's remaining blocks and classifier."""
        start, stop = self.at_student[1], self.student.depth
        return self.student.finish(self.student.run(state, start, stop))

    def __call__(self, x):
        """(plain logits, interactive logits of each round, message terms, state terms, first and own message)."""
        low, high = self.states(self.student, self.at_student, x)
        with torch.set_grad_enabled(self.params.finetune and torch.is_grad_enabled()):
            # the consistency targets of a frozen teacher; its upper blocks run with gradients when it replies
            their_low, their_high = self.states(self.teacher, self.at_teacher, x)
        plain, grid, codecs = self.rest(high), self.params.grid, self.codecs
        if self.params.mode == "hint":
            mine = codecs["regressor"](read_positions(high, grid))
            return plain, [], [], [hint(mine, read_positions(their_high, grid))], None
        replies, messages, states, pair, said = [], [], [], None, None
        own = codecs["student_high"](read_positions(high, grid))
        for _ in range(self.params.rounds if self.params.mode == "two-way" else 1):
            heard = their_high
            if self.params.mode == "two-way":
                said = codecs["student_low"](read_positions(low, grid)) if said is None else said
                theirs = codecs["teacher_low"](read_positions(their_low, grid))
                read = write_state(codecs["to_teacher"](said), their_low)
                with still_norms(*self.teacher.blocks):
                    heard = self.teacher.run(read, *self.at_teacher)
                messages.append(F.mse_loss(said, theirs))
                states.append(hint(read, their_low))
                pair = pair or (said, theirs)
            reply = codecs["teacher_high"](read_positions(heard, grid))
            understood = write_state(codecs["to_student"](reply), high)
            with still_norms(*self.student.blocks[self.at_student[1] :]):
                replies.append(self.rest(understood))
            messages.append(F.mse_loss(reply, own))
            states.append(F.mse_loss(understood, high))  # the student's own state moves, too: this is what it learns
            said = codecs["student_high"](read_positions(understood, grid))
            pair = pair or (own, reply)
        return plain, replies, messages, states, pair


def mean(terms):
    return torch.stack(terms).mean()


@hookimpl
def train(task, params):
    student, loader = task.student(), task.train_loader("labeled")
    weights = {"interact": params.w_interact, "mc": params.w_mc, "sc": params.w_sc}
    if not any(weights.values()):
        task.fit(student, lambda model, batch: cross_entropy(model(batch.x), batch.y), loader=loader)
        task.artifact("talk.json").write_text("{}")
        return student
    which = params.teacher or ("default" if task.spec.teacher is not None else "shape")
    teacher = task.teacher(which, trainable=params.finetune)
    talk = Conversation(student, teacher, params)
    with torch.no_grad():
        widths = talk.widths(next(iter(task.train_loader("labeled"))).x[:2])
    with task.seeded("codecs"):
        talk.codecs = make_codecs(params.mode, widths, params).to(task.device)

    def loss(model, batch):
        task.budget.spend("teacher_queries", len(batch))
        plain, replies, messages, states, _ = talk(batch.x)
        losses = {"ce": cross_entropy(plain, batch.y)}
        if replies:
            losses["interact"] = weights["interact"] * mean([cross_entropy(each, batch.y) for each in replies])
            losses["mc"] = weights["mc"] * mean(messages)
        return losses | {"sc": weights["sc"] * mean(states)}

    task.fit(student, loss, loader=loader, modules=[talk.codecs, teacher] if params.finetune else [talk.codecs])
    task.artifact("talk.json").write_text(json.dumps(report(task, talk, teacher)))
    return student


@torch.no_grad()
def report(task, talk, teacher):
    """On the validation data: accuracy of the last round, mean cosine of the first round's messages."""
    val = task.split("val")
    teacher.eval()
    talk.codecs.eval()
    _, replies, _, _, pair = talk(val.x)
    found = {"codec_parameters": sum(parameter.numel() for parameter in talk.codecs.parameters())}
    if replies:
        found["interactive_val_top1"] = float((replies[-1].argmax(1) == val.y).float().mean())
        found["message_cosine"] = float(F.cosine_similarity(*pair, dim=-1).mean())
    return found


@hookimpl
def evaluate(task, model):
    return task.score(model) | json.loads(task.artifact("talk.json").read_text())
