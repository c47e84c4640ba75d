"""Likelihoods of chunks: what two models with different tokenizers say of the same spans of the same texts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kdbench.losses.binarised import EPS
from kdbench.losses.divergences import log_softmax
from kdbench.tracks.llm.blocks.alignment import Alignment, chunk_align, starts_word, vocabulary_bytes
from kdbench.tracks.llm.data.encoding import Sequences, TextBatch
from kdbench.tracks.llm.data.instruct import Item
from kdbench.tracks.llm.networks.models import body_and_head, targets_of
from kdbench.tracks.llm.outputs import weights_digest
from kdbench.tracks.llm.spec import Hub

if TYPE_CHECKING:
    from kdbench.tracks.llm.task import LLMTask


@dataclass
class Spoken:
    """What one side says of its N scored tokens."""

    logprob: Tensor
    """(N,) of each token."""
    word: Tensor
    """(N,) log-probability that the token at this position begins a word or is special."""
    right: Tensor
    """(N,) 1 where the token is the most probable one."""


def spoken(logits: Tensor, targets: Tensor, blanks: Tensor) -> Spoken:
    """Logits (N, V), targets (N,), and which tokens begin a word (at most V, bool), to :class:`Spoken`."""
    logits = logits[:, : len(blanks)]  # embeddings may be padded beyond the vocabulary
    log_q = log_softmax(logits)
    logprob = log_q.gather(-1, targets[:, None]).squeeze(1)
    word = log_q[:, blanks.to(log_q.device)].logsumexp(-1).clamp(max=0)
    return Spoken(logprob, word, (log_q.argmax(-1) == targets).float())


def at(values: Tensor, where: Tensor) -> Tensor:
    """Values (N,) at positions (C,), 0 where the position is -1."""
    return torch.where(where >= 0, values[where.clamp(min=0)], torch.zeros_like(values[:1]))


def likelihoods(
    alignment: Alignment, teacher: Spoken, student: Spoken, *, append_space: bool = True, merge: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Alignment]:
    """Log-likelihoods (C,) of each side, which chunks are scored (C,) bool, and the alignment after merging.

    ``teacher`` and ``student`` are :class:`Spoken` on the two sides of ``alignment``.
    """
    if merge > 0:
        probability = at(teacher.word, alignment.after[0]).exp()
        starts = (probability > merge) & (alignment.after[0] >= 0)
        alignment = alignment.merged(starts | alignment.closed)
    sums = [alignment.sums(side, one.logprob).clamp(max=0) for side, one in enumerate((teacher, student))]
    scored = torch.ones_like(alignment.closed)
    if append_space:
        # after a special token nothing else can follow, so that there is nothing to remove
        opened = ~alignment.closed
        pairs = zip(sums, (teacher, student), alignment.after, strict=True)
        sums = [total + at(one.word, after) * opened for total, one, after in pairs]
        scored = alignment.closed | ~alignment.ends_row
    return sums[0], sums[1], scored, alignment


def encoded(task: LLMTask, name: str, tokenizer: Any) -> Sequences:
    """A split under a tokenizer, row by row, of exactly the texts that the task knows."""
    split = task.split(name)
    if split.kind is not Item:
        return task.kind.encode_rows(split.rows, tokenizer)
    return task.kind.same_tokens(task, split, tokenizer)


def states_and_logits(model: nn.Module, batch: TextBatch) -> tuple[Tensor, Tensor]:
    """Last hidden states (N, D) and logits (N, V) at the scored positions; one forward."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    parts = body_and_head(model)
    if parts is None:
        output = model(**inputs, output_hidden_states=True)
        return output.hidden_states[-1][:, :-1][batch.scored], output.logits[:, :-1][batch.scored]
    body, head = parts
    hidden = body(**inputs).last_hidden_state[:, :-1][batch.scored]
    return hidden, head(hidden)


@torch.no_grad()
def frozen_states(task: LLMTask, batch: TextBatch) -> tuple[Tensor, Tensor]:
    """The teacher's :func:`states_and_logits`, metered."""
    teacher = task.teacher()
    if body_and_head(teacher) is not None:
        task.budget.spend("teacher_queries", len(batch))
    return states_and_logits(teacher, batch)


def hidden_loss(alignment: Alignment, teacher: Tensor, student: Tensor, projector: nn.Module) -> Tensor:
    """Squared distance of hidden states at the ends of chunks, over the teacher's mean square; a scalar.

    ``teacher`` (N_a, D_a) and ``student`` (N_b, D_b) are the states of the two sides; ``projector`` maps the student's.
    """
    inside = (alignment.after[0] >= 0) & (alignment.after[1] >= 0)
    target = teacher[alignment.after[0][inside]].float()
    distance = (projector(student[alignment.after[1][inside]].float()) - target).square().mean()
    loss: Tensor = distance / target.square().mean().clamp(min=EPS)
    return loss


class Sides:
    """A split under the teacher's and the student's tokenizer, and what the teacher says of it."""

    def __init__(self, task: LLMTask, split: str, tokenizer: Any) -> None:
        self.task, self.split = task, split
        own = encoded(task, split, tokenizer)
        self.sequences = (encoded(task, split, task.tokenizer) if tokenizer is not task.tokenizer else own, own)
        self.words = (vocabulary_bytes(task.tokenizer), vocabulary_bytes(tokenizer))
        self.blanks = (starts_word(self.words[0]), starts_word(self.words[1]))

    def theirs(self, batch: TextBatch) -> TextBatch:
        """The rows of a student's batch under the teacher's tokenizer; ``index`` says they are no rows of the cache."""
        found = self.sequences[0].batch(batch.index.cpu(), self.split)
        found.index = torch.full_like(found.index, -1)
        return found.to(self.task.device)

    def align(self, theirs: TextBatch, batch: TextBatch) -> Alignment:
        """Chunks of a student's batch and of its rows under the teacher's tokenizer (side 0)."""
        return chunk_align((theirs, batch), self.words)

    def kept(self) -> Tensor | None:
        """(R, L-1, 3) of the teacher's :class:`Spoken`, computed once where the task keeps outputs; else None."""
        task, sequences = self.task, self.sequences[0]
        if task.spec.outputs is None:
            return None
        hub = isinstance(task.spec.teacher, Hub)
        key = {
            "track": "llm",
            "teacher": weights_digest(task.teacher()) if hub else task.spec.teacher_key(),
            "tokens": _digest(sequences),
        }

        def make(folder: Path) -> None:
            values = torch.zeros(len(sequences), sequences.ids.shape[1] - 1, 3)
            for batch in sequences.batches(8, self.split):
                batch = batch.to(task.device)
                said = spoken(task.scored_teacher(batch, metered=False), targets_of(batch), self.blanks[0])
                row, position = batch.scored.nonzero(as_tuple=True)
                values[batch.index[row].cpu(), position.cpu()] = torch.stack(
                    [said.logprob, said.word, said.right], dim=-1
                ).cpu()
            save_file({"values": values}, folder / "values.safetensors")

        return load_file(task.cache.get("chunk-values", key, make) / "values.safetensors")["values"]

    def teacher_says(self, theirs: TextBatch, batch: TextBatch, kept: Tensor | None) -> Spoken:
        """The teacher's :class:`Spoken` on ``theirs``, from what is kept or through the teacher."""
        if kept is None:
            return spoken(self.task.scored_teacher(theirs), targets_of(theirs), self.blanks[0])
        row, position = theirs.scored.nonzero(as_tuple=True)
        self.task.budget.spend("cached_teacher_queries", len(batch))
        return Spoken(*kept[batch.index[row].cpu(), position.cpu()].to(self.task.device).unbind(-1))


@torch.no_grad()
def chunk_facts(
    task: LLMTask, model: nn.Module, *, append_space: bool = True, merge: float = 0.0
) -> tuple[dict[str, float], dict[str, list[int]]]:
    """What teacher and ``model`` say of the chunks of the validation data, and counts of chunks by their bytes.

    ``chunk_gap``: mean difference of their log-likelihoods in nats per byte; ``chunk_agreement``: share of the chunks
    on which both or neither are greedily right; mean bytes of a chunk, before and after merging, and its tokens.
    """
    sides = Sides(task, "val", task.tokenizer_of(model))
    kept, gaps, agree, sizes, tokens, merged = sides.kept(), [], [], [], [], []
    for batch in sides.sequences[1].batches(task.spec.evaluation.batch_size, "val"):
        batch = batch.to(task.device)
        theirs = sides.theirs(batch)
        alignment = sides.align(theirs, batch)
        says = sides.teacher_says(theirs, batch, kept)
        own = spoken(states_and_logits(model, batch)[1], targets_of(batch), sides.blanks[1])
        p, q, scored, joined = likelihoods(alignment, says, own, append_space=append_space, merge=merge)
        gaps.append(((p - q).abs() / joined.size.clamp(min=1))[scored].cpu())
        wrong = [alignment.sums(side, 1 - one.right) > 0 for side, one in enumerate((says, own))]
        agree.append((wrong[0] == wrong[1]).float().cpu())
        counts = [alignment.sums(side, torch.ones_like(one.right)) for side, one in enumerate((says, own))]
        tokens.append(torch.stack(counts).cpu())
        sizes.append(alignment.size.cpu())
        merged.append(joined.size.cpu())
    size, per_chunk, after = torch.cat(sizes), torch.cat(tokens, dim=1), torch.cat(merged)
    histogram = {"bytes": np.bincount(size).tolist(), "bytes_after_merging": np.bincount(after).tolist()}
    facts = {
        "chunk_gap": float(torch.cat(gaps).mean()),
        "chunk_agreement": float(torch.cat(agree).mean()),
        "chunk_bytes": float(size.float().mean()),
        "chunk_bytes_after_merging": float(after.float().mean()),
        "chunk_tokens_teacher": float(per_chunk[0].mean()),
        "chunk_tokens_student": float(per_chunk[1].mean()),
    }
    return facts, histogram


def _digest(sequences: Sequences) -> str:
    return hashlib.sha256(sequences.ids.numpy().tobytes() + sequences.starts.numpy().tobytes()).hexdigest()[:16]
