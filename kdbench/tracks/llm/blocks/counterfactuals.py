"""Instructions without some of their tokens: which tokens may go, what is flagged, and who still answers.

A *context* is a row of tokens (start token, prompt, response) of which a stretch may lose tokens: the instruction, or
steps of the response that later steps build on. Deleting tokens of it makes a counterfactual: the same answer is asked
for without them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kdbench.losses.tokens import IGNORE
from kdbench.task import count_parameters
from kdbench.tracks.llm.blocks.domains import forward_flops, model_nll
from kdbench.tracks.llm.blocks.sensitivity import input_grad_norms, surprise
from kdbench.tracks.llm.data.encoding import Sequences, pack
from kdbench.tracks.llm.data.instruct import Item
from kdbench.tracks.llm.generation import Prompts
from kdbench.tracks.llm.networks.tokenizers import pad_id, start_id

if TYPE_CHECKING:
    from kdbench.tracks.llm.task import LLMTask

Flags = NDArray[np.bool_]
STEP = re.compile(r"\n+| => |[,;.] ")
"""What ends a step of a response."""


@dataclass(frozen=True)
class Context:
    """A row whose answer starts at position ``start``, and the stretch of it that may lose tokens."""

    ids: tuple[int, ...]
    start: int
    """First position that is scored; everything before is given."""
    begin: int
    """The stretch is the positions ``[begin, end)``, before ``start``."""
    end: int
    fixed: tuple[bool, ...]
    """For each position of the stretch whether it must stay: white space and nothing else."""
    distractor: tuple[bool, ...]
    """For each position of the stretch whether it is known to be irrelevant to the answer."""
    item: int
    """Which item it is made of."""
    said: str = ""
    """The response up to ``start``."""
    deleted: tuple[int, ...] = ()
    """Places in the stretch of the whole context that were deleted, counted from ``begin``."""
    source: int = -1
    """Of a counterfactual: which context it was made of."""

    def without(self, places: Sequence[int] | NDArray[np.intp], source: int = -1) -> Context:
        """The counterfactual without the tokens at ``places`` of the stretch, counted from ``begin``."""
        gone = {self.begin + int(place) for place in places}
        ids = tuple(token for position, token in enumerate(self.ids) if position not in gone)
        kept = [i for i in range(self.end - self.begin) if self.begin + i not in gone]
        return replace(
            self,
            ids=ids,
            start=self.start - len(gone),
            end=self.end - len(gone),
            fixed=tuple(self.fixed[i] for i in kept),
            distractor=tuple(self.distractor[i] for i in kept),
            deleted=tuple(sorted(int(place) for place in places)),
            source=source,
        )


def contexts_of(items: Sequence[Item], tokenizer: Any, *, steps: bool = False) -> list[Context]:
    """The instructions of ``items`` as contexts; with ``steps`` also the first steps of responses that have several.

    Prompt and response are tokenized apart, as :func:`~kdbench.tracks.llm.data.encoding.encode_pairs` does. A context
    of steps has the response up to the end of a step as its stretch, and is asked for the rest.
    """
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    prompts = tokenizer([item.prompt for item in items], **options)
    responses = tokenizer([item.response for item in items], **options)
    blank = blanks(tokenizer)
    contexts = []
    for i, item in enumerate(items):
        prompt, offsets = prompts["input_ids"][i], prompts["offset_mapping"][i]
        response, places = responses["input_ids"][i], responses["offset_mapping"][i]
        row = (start_id(tokenizer), *prompt, *response, tokenizer.eos_token_id)
        first = item.prompt.index(item.instruction)
        inside = [k for k, place in enumerate(offsets) if overlap(place, first, first + len(item.instruction))]
        span = item.distractor_in_prompt() or (0, 0)
        known = tuple(overlap(offsets[k], *span) for k in inside)
        begin = 1 + inside[0]
        fixed = tuple(prompt[k] in blank for k in inside)
        contexts.append(Context(row, 1 + len(prompt), begin, begin + len(inside), fixed, known, i))
        for match in STEP.finditer(item.response) if steps else ():
            count = sum(begin < match.end() for begin, _ in places)
            if 0 < count < len(response):
                begin = 1 + len(prompt)
                fixed = tuple(token in blank for token in response[:count])
                said = item.response[: places[count][0]]
                contexts.append(Context(row, begin + count, begin, begin + count, fixed, (False,) * count, i, said))
    return contexts


def overlap(place: tuple[int, int], begin: int, end: int) -> bool:
    """Whether two ranges of characters have one in common."""
    return place[0] < end and place[1] > begin


def blanks(tokenizer: Any) -> frozenset[int]:
    """Tokens that are white space and nothing else."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return frozenset(token for token, text in enumerate(texts) if text and not text.strip())


def rows_of(contexts: Sequence[Context], tokenizer: Any) -> Sequences:
    """The contexts as rows of which the answer is scored."""
    return pack([list(context.ids) for context in contexts], [context.start for context in contexts], pad_id(tokenizer))


# --- which tokens -----------------------------------------------------------------------------------------------------


def unit(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values (n,) scaled to [0, 1]; all 0 where they are equal."""
    low, high = values.min(), values.max()
    scaled: NDArray[np.float64] = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return scaled


def difference(teacher: NDArray[np.float64], student: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much more a teacher depends on each token than a student, (n,) in [0, 1], from norms of gradients (n,) each.

    Small where the student's answer depends on a token and the teacher's does not.
    """
    return unit(unit(teacher) - unit(student))


def flagged(scores: NDArray[np.float64], rate: float, fixed: Sequence[bool], cap: float = 0.5) -> Flags:
    """The ``floor(rate n) + 1`` smallest of scores (n,) and what equals them, unless above ``cap`` or fixed, (n,) bool.

    None where all scores are equal: then nothing stands out.
    """
    if scores.min() == scores.max():
        return np.zeros(len(scores), dtype=bool)
    threshold = np.sort(scores)[min(int(rate * len(scores)), len(scores) - 1)]
    chosen: Flags = (scores <= min(threshold, cap)) & ~np.asarray(fixed)
    return chosen


def runs(flags: Flags) -> list[NDArray[np.intp]]:
    """Positions of the flags, one array for each stretch without a gap.

    >>> [run.tolist() for run in runs(np.array([True, True, False, True]))]
    [[0, 1], [3]]
    """
    places = np.flatnonzero(flags)
    return [part for part in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(part)]


def token_values(
    task: LLMTask, model: nn.Module, contexts: Sequence[Context], what: Literal["gradient", "surprise"]
) -> list[NDArray[np.float64]]:
    """:func:`input_grad_norms` or :func:`surprise` of a model on the stretch of each context, one (n,) array for each.

    Spends ``flops``, and ``teacher_queries`` where the model is the task's teacher.
    """
    measure, passes = (input_grad_norms, 2) if what == "gradient" else (surprise, 1)
    sequences = rows_of(contexts, task.tokenizer)
    before, was_training = task.budget.spent.get("teacher_queries", 0.0), model.training
    model.eval()
    parts = []
    for rows in torch.arange(len(contexts)).split(task.spec.evaluation.batch_size):
        values = measure(model, sequences.batch(rows, "").to(task.device)).double().cpu().numpy()
        pairs = zip(values, (contexts[row] for row in rows.tolist()), strict=True)
        parts += [value[context.begin : context.end] for value, context in pairs]
    model.train(was_training)
    task.budget.spend("flops", passes * forward_flops(model, sequences))
    if model is task.teacher():  # the forward may or may not pass the hook that counts
        task.budget.set("teacher_queries", before + len(contexts))
    return parts


# --- who still answers ------------------------------------------------------------------------------------------------


def solved(task: LLMTask, model: nn.Module, contexts: Sequence[Context], items: Sequence[Item]) -> Flags:
    """Whether a model's greedy answer to each context is right, (n,); what it goes on from counts as its answer.

    Spends ``generated_tokens``, ``flops``, and ``teacher_queries`` where the model is the task's teacher.
    """
    tokenizer, size = task.tokenizer, task.spec.evaluation.batch_size
    parameters, right = count_parameters(model), np.zeros(len(contexts), dtype=bool)
    for first in range(0, len(contexts), size):
        part = contexts[first : first + size]
        prompts = Prompts([list(context.ids[: context.start]) for context in part], torch.full((len(part),), -1), "")
        batch = task.rollout(model, prompts, max_new=task.spec.evaluation.max_new, temperature=0.0)
        task.budget.spend("flops", 2.0 * parameters * int(batch.attention_mask.sum()))
        answers = [row[labels != IGNORE] for row, labels in zip(batch.input_ids, batch.labels, strict=True)]
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
        for i, (context, text) in enumerate(zip(part, texts, strict=True)):
            right[first + i] = items[context.item].check(context.said + text)
    return right


def improved(task: LLMTask, model: nn.Module, before: Sequence[Context], after: Sequence[Context]) -> Flags:
    """Whether the answer of each context is more likely ``after`` than ``before`` for a model, (n,) bool.

    For data whose answers nobody can check. Spends ``flops``, and ``teacher_queries`` where the model is the teacher.
    """
    nll = [model_nll(task, model, rows_of(contexts, task.tokenizer)) for contexts in (before, after)]
    if model is task.teacher():
        task.budget.spend("teacher_queries", 2 * len(after))
    less: Flags = nll[1] < nll[0]
    return less
