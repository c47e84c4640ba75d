"""ULD: Towards Cross-Tokenizer Distillation, the Universal Logit Distillation Loss (Boizard et al., 2025).

Cross-entropy plus the L1 distance between the sorted probabilities of teacher and student, position by position. The
loss does not ask which token has which probability, so that teacher and student may have different tokenizers; the
i-th token of a response under one is compared with the i-th under the other.
"""

from typing import Literal

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.tokens import Positions, tok_mean, truncate_pairwise, uld
from kdbench.tracks.llm.networks.models import scored_logits, targets_of, token_nll

BASELINE = Baseline(
    slug="uld",
    title="Towards Cross-Tokenizer Distillation: the Universal Logit Distillation Loss for LLMs",
    track="llm",
    tasks=["instruct", "text", "transfer"],
    requires=["logits"],
    tags=["off-policy", "cross-tokenizer"],
    reference="Boizard, El Haddad, Hudelot, Colombo; TMLR 2025, arXiv 2402.12030",
)


class UldParams(Params):
    """The weight of the distance and the student's tokenizer."""

    weight: float = Field(1.5, ge=0, le=100, description="of the distance beside the cross-entropy")
    temperature: float = Field(1.0, gt=0, le=100, description="of both distributions")
    tokenizer: Literal["task", "bytes", "bpe512", "bpe1024", "bpe2048"] = Field(
        "task", description="of the student: as the task has it, or another, which starts from random weights"
    )


def student_with(task, tokenizer):
    """A student that reads ``tokenizer``, and the training data under it, row by row those of the task."""
    if tokenizer == "task":
        return task.student(), task.student_sequences()
    other = task.local_tokenizer(tokenizer)
    return task.new_student(tokenizer=other), task.kind.encode_rows(task.split("train").rows, other)


@hookimpl
def train(task, params):
    student, sequences = student_with(task, params.tokenizer)
    reference = task.split("train").sequences

    def positions(logits, batch):
        return Positions(logits, targets_of(batch), batch.scored.nonzero()[:, 0])

    def loss(model, batch):
        logits = scored_logits(model, batch)
        theirs = reference.batch(batch.index.cpu(), "train").to(task.device)  # the same rows under the task's tokenizer
        pair = truncate_pairwise(positions(logits, batch), positions(task.scored_teacher(theirs), theirs))
        return {
            "ce": tok_mean(token_nll(logits, targets_of(batch))),
            "uld": params.weight * tok_mean(uld(*pair, temperature=params.temperature)),
        }

    task.fit(student, loss, loader=task.loader(sequences, split="train"))
    return student
