"""A student's responses with their worst error corrected by the teacher (SCRG of Liu et al. 2026).

Of the tokens that the teacher would not have chosen, given what the student wrote before, the one where the teacher
differs most from the student, by KL(p || q), is replaced by the teacher's choice. The student then writes the rest
anew. A response that the teacher agrees with stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.losses.divergences import fkl
from kdbench.losses.tokens import IGNORE
from kdbench.task import count_parameters
from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.tracks.llm.data.specs import InstructData
from kdbench.tracks.llm.evaluate import distinct, exact_matches
from kdbench.tracks.llm.generation import Prompts
from kdbench.tracks.llm.networks.models import targets_of, token_nll
from kdbench.training.replay import ReplayBuffer, Row, batch_of, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kdbench.tracks.llm.batches import TokenLogits
    from kdbench.tracks.llm.task import LLMTask

Choice = Literal["argmax", "sample"]
Sequence = Literal["scrg", "substitute", "raw", "teacher"]

NOTHING = torch.empty(0, dtype=torch.int64)


def batch_from(rows: list[Row]) -> TextBatch:
    """Rows as one batch that comes from no split."""
    made: TextBatch = batch_of(rows, TextBatch(NOTHING, NOTHING, NOTHING, NOTHING, ""))
    return made


def chosen_by_teacher(tokens: TokenLogits, how: Choice, generator: torch.Generator) -> Tensor:
    """(N,) int64 token ids: the teacher's most probable token at each position, or one drawn from its distribution.

    Where the teacher is known by top-k events alone, of the k tokens.
    """
    known = tokens.teacher if tokens.events is None else tokens.teacher[:, : tokens.events.shape[1]]
    if how == "argmax":
        place = known.argmax(-1)
    else:
        drawn = torch.multinomial(known.softmax(-1).cpu(), 1, generator=generator)
        place = drawn.squeeze(1).to(known.device)
    return place if tokens.events is None else tokens.events.gather(-1, place[:, None]).squeeze(1)


def worst_errors(tokens: TokenLogits, chosen: Tensor) -> list[int]:
    """Of each sequence the number of the scored token where KL(p || q) is largest among those that are not ``chosen``.

    -1 where the teacher would have chosen every token. Every sequence has a scored token.
    """
    gap = fkl(tokens.student, tokens.teacher).masked_fill(chosen == tokens.targets, -1.0)
    counts = torch.unique_consecutive(tokens.sequence, return_counts=True)[1].tolist()
    return [int(part.argmax()) if bool((part >= 0).any()) else -1 for part in gap.split(counts)]


@dataclass(frozen=True)
class Corrected:
    """One row up to and with the corrected token, and the room that is left for the rest."""

    row: Row
    start: int
    """Position of the first token of the response."""
    position: int
    """Number of the corrected token within the response, -1 where there is no error."""
    left: int
    """Tokens that may follow; 0 where the response is at its end."""

    def joined(self, rest: Tensor) -> Row:
        """The row with further tokens (n,) at its end."""
        ids = torch.cat([self.row.input_ids, rest])
        labels = ids.clone()
        labels[: self.start] = IGNORE
        return Row(ids, labels, self.row.index)


def corrected(row: Row, position: int, token: int, *, eos: int, max_new: int) -> Corrected:
    """``row`` cut behind the scored token number ``position``, which becomes ``token``."""
    start = int((row.labels != IGNORE).int().argmax())
    if position < 0:
        return Corrected(row, start, -1, 0)
    place = start + position
    ids = row.input_ids[: place + 1].clone()
    ids[place] = token
    left = 0 if token == eos else max_new - position - 1
    return Corrected(replace(row, input_ids=ids), start, position, left)


class Reviser:
    """Writes responses of ``student`` to prompts of a split and revises them with the task's teacher."""

    def __init__(
        self,
        task: LLMTask,
        student: nn.Module,
        *,
        sequence: Sequence = "scrg",
        choice: Choice = "argmax",
        corrections: int = 1,
        temperature: float = 1.0,
        max_new: int = 24,
        purpose: str = "revision",
    ) -> None:
        """``sequence``: ``scrg``, only the token replaced (``substitute``), as written (``raw``), or the teacher's own.

        ``corrections`` are made one after the other, each on what the one before has left.
        """
        self.task, self.student, self.sequence, self.choice = task, student, sequence, choice
        self.rounds = corrections if sequence in ("scrg", "substitute") else 0
        self.sampling = {"temperature": temperature}
        self.max_new = max_new
        self.prompts, self.tokens, self.choices = (
            task.generator(f"{purpose}/{what}") for what in ("prompts", "tokens", "choices")
        )

    def write(self, prompts: Prompts, model: nn.Module, max_new: int) -> TextBatch:
        """Responses of a model; two FLOPs per parameter and token read or written."""
        batch = self.task.rollout(model, prompts, max_new=max_new, generator=self.tokens, **self.sampling)
        self.task.budget.spend("flops", 2.0 * count_parameters(model) * int(batch.attention_mask.sum()))
        return batch

    def __call__(self, count: int, split: str = "train") -> TextBatch:
        """``count`` responses to prompts drawn from a split."""
        return self.revise(self.drafts(count, split))[0]

    def drafts(self, count: int, split: str) -> TextBatch:
        """Responses before any correction."""
        writer = self.task.teacher() if self.sequence == "teacher" else self.student
        return self.write(self.task.prompts(split, count, self.prompts), writer, self.max_new)

    @torch.no_grad()
    def revise(self, batch: TextBatch) -> tuple[TextBatch, Tensor]:
        """A batch of responses after the corrections, in the same order, and which of them were corrected (B,)."""
        ever = torch.zeros(len(batch), dtype=torch.bool)
        was_training = self.student.training
        self.student.eval()
        for _ in range(self.rounds):
            batch, found = self._once(batch)
            ever |= found
        self.student.train(was_training)
        return batch, ever

    def _once(self, batch: TextBatch) -> tuple[TextBatch, Tensor]:
        tokens = self.task.tokens(self.student, batch)
        chosen = chosen_by_teacher(tokens, self.choice, self.choices)
        positions, rows = worst_errors(tokens, chosen), rows_of(batch)
        counts = torch.bincount(tokens.sequence, minlength=len(rows)).cumsum(0).tolist()
        parts = [
            corrected(
                row,
                position,
                int(chosen[first + position]),
                eos=self.task.tokenizer.eos_token_id,
                max_new=self.max_new,
            )
            for row, position, first in zip(rows, positions, [0, *counts[:-1]], strict=True)
        ]
        return self._completed(rows, parts), torch.tensor([part.position >= 0 for part in parts])

    def _completed(self, rows: list[Row], parts: list[Corrected]) -> TextBatch:
        rest: dict[int, Tensor] = {}
        if self.sequence == "substitute":
            behind = ((i, part, part.start + part.position + 1) for i, part in enumerate(parts))
            rest = {i: rows[i].input_ids[place:] for i, part, place in behind if part.left > 0}
        elif open_ones := [i for i, part in enumerate(parts) if part.left > 0]:
            # The student writes with one limit for the whole batch; what is beyond the limit of a row is dropped.
            prefixes = Prompts([parts[i].row.input_ids.tolist() for i in open_ones], torch.tensor(open_ones), "")
            written = self.write(prefixes, self.student, max(parts[i].left for i in open_ones))
            for i, row in zip(open_ones, rows_of(written), strict=True):
                known = len(parts[i].row.input_ids)
                rest[i] = row.input_ids[known : known + parts[i].left]
        return batch_from([part.joined(rest.get(i, part.row.input_ids[:0])) for i, part in enumerate(parts)])


class Pool:
    """A stock of sequences that batches are drawn from, made anew when it is old; state of ``task.fit``."""

    def __init__(
        self, make: Callable[[int], TextBatch], size: int, refresh: int, rng: np.random.Generator, portion: int = 128
    ) -> None:
        """``make(n)`` gives n sequences, at most ``portion`` at once. The pool is old after ``refresh`` steps."""
        self.make, self.size, self.refresh, self.rng, self.portion = make, size, refresh, rng, portion
        self.stock = ReplayBuffer(size)
        self.old = True

    def __call__(self, count: int) -> TextBatch:
        """``count`` sequences of the stock."""
        if self.old:
            for begin in range(0, self.size, self.portion):
                self.stock.push(self.make(min(self.portion, self.size - begin)))
            self.old = False
        return batch_from(self.stock.sample(count, self.rng))

    def on_step(self, step: int) -> None:
        """After optimizer step ``step`` (1-based)."""
        self.old = self.old or step % self.refresh == 0

    def state_dict(self) -> dict[str, Any]:
        return {"stock": self.stock.state_dict(), "old": self.old}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stock.load_state_dict(state["stock"])
        self.old = state["old"]


# --- what it does -----------------------------------------------------------------------------------------------------


@contextmanager
def unmetered(task: LLMTask) -> Iterator[None]:
    """What is generated inside is no cost of the method: for measurements in ``evaluate``."""
    before = dict(task.budget.spent)
    try:
        yield
    finally:
        task.budget.restore(before)


def mean_logprob(task: LLMTask, batch: TextBatch) -> np.ndarray:
    """(B,) mean log-probability in nats per token that the teacher gives to each response."""
    nll = token_nll(task.scored_teacher(batch), targets_of(batch)).cpu().numpy()
    rows = batch.scored.nonzero()[:, 0].cpu().numpy()
    means: np.ndarray = -np.bincount(rows, weights=nll, minlength=len(batch)) / np.bincount(rows, minlength=len(batch))
    return means


def effect(reviser: Reviser, count: int) -> dict[str, float]:
    """What revising does to answers to ``count`` test prompts (all, where there are fewer); evaluation only.

    ``revised_share`` of the drafts, ``loglik_rise_share`` of the revised ones (mean log-probability per token under the
    teacher), ``distinct_2_*`` of drafts, revised and teacher's answers to the same prompts, and, where answers can be
    checked, ``exact_match_drafts`` and ``exact_match_revised``. ``*_revision_gain`` are revised minus drafts, or minus
    the teacher for ``distinct_2``.
    """
    task, texts, rises, corrected_rows = reviser.task, [[], [], []], [], []
    test = task.split("test")
    rows = torch.randperm(len(test), generator=task.generator("revision/probes"))[:count]
    with unmetered(task):
        for part in rows.split(task.spec.evaluation.batch_size):
            prompts = task.prompts_of("test", part)
            drafts = reviser.write(prompts, reviser.student, reviser.max_new)
            revised, found = reviser.revise(drafts)
            corrected_rows += found.tolist()
            teachers = reviser.write(prompts, task.teacher(), reviser.max_new)
            gain = mean_logprob(task, revised) - mean_logprob(task, drafts)
            rises += gain[gain != 0].tolist()
            for some, batch in zip(texts, (drafts, revised, teachers), strict=True):
                responses = [row.labels[row.labels != IGNORE] for row in rows_of(batch)]
                some += task.tokenizer.batch_decode(responses, skip_special_tokens=True)
    names = ("drafts", "revised", "teacher")
    values = {
        f"distinct_2_{name}": distinct([text.split() for text in some]) for name, some in zip(names, texts, strict=True)
    }
    values["distinct_2_revision_gain"] = values["distinct_2_revised"] - values["distinct_2_teacher"]
    values["revised_share"] = float(np.mean(corrected_rows))
    values["loglik_rise_share"] = float(np.mean(np.array(rises) > 0)) if rises else 0.0
    if isinstance(task.spec.data, InstructData):
        items = [test.rows[row] for row in rows.tolist()]
        for name, some in zip(names[:2], texts, strict=False):
            values[f"exact_match_{name}"] = float(exact_matches(items, some).mean())
        values["exact_match_revision_gain"] = values["exact_match_revised"] - values["exact_match_drafts"]
    return values
