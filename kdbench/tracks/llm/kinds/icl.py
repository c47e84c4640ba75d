"""Few-shot tasks: demonstrations and a query whose label only they tell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.losses.tokens import IGNORE
from kdbench.task import Scores
from kdbench.tracks.llm import scoring
from kdbench.tracks.llm.data import icl
from kdbench.tracks.llm.data.encoding import Sequences, encode, encode_pairs, encode_texts, pack
from kdbench.tracks.llm.data.icl import Episode
from kdbench.tracks.llm.data.specs import IclData
from kdbench.tracks.llm.kinds.base import LanguageKind
from kdbench.tracks.llm.networks.models import scored_logits, targets_of, token_nll
from kdbench.tracks.llm.networks.tokenizers import pad_id, start_id


class Icl(LanguageKind):
    """Rows of which the label is scored; models are judged by the likelihoods of the names of the classes."""

    row = Episode
    data: IclData

    def make(self, name: str) -> tuple[Sequences, list[Any]]:
        rows = icl.episodes(self.data, name)
        return encode_episodes(rows, self.prepared.tokenizer, self.data.length), rows

    def stage_rows(self, objective: str) -> Sequences:
        """``lm`` is every token of the episodes, labels of the demonstrations among them, and the plain text.

        ``labels`` is the labels alone, of demonstrations and query; ``echo``, ``recall`` and ``hint`` are exercises.
        """
        tokenizer, rows = self.prepared.tokenizer, self.prepared.split("train").sequences
        if objective == "lm":
            return rows.plain() + self.plain_text()
        if objective == "labels":
            return score(rows, [episode.parts for episode in self.prepared.split("train").rows], tokenizer)
        if objective in ("echo", "recall", "hint"):
            parts = [exercise.parts for exercise in icl.exercises(self.data, objective)]
            texts = ["".join(text for text, _ in each) for each in parts]
            return score(encode_texts(texts, tokenizer), parts, tokenizer)
        return rows

    def plain_text(self) -> Sequences:
        """The plain texts of the same words, one row each, every token scored."""
        tokenizer = self.prepared.tokenizer
        rows = [[start_id(tokenizer), *ids] for ids in encode(icl.stories(self.data), tokenizer)]
        return pack(rows, [1] * len(rows), pad_id(tokenizer))

    def tokenizer_texts(self) -> Iterable[str]:
        yield from icl.stories(self.data)
        yield from (episode.text for episode in icl.episodes(self.data, "train"))

    def encode_rows(self, rows: Sequence[Any], tokenizer: Any) -> Sequences:
        return encode_episodes(rows, tokenizer, 1 << 20)

    def prompt_tokens(self, sequences: Sequences, row: int) -> int:
        """Everything before the label."""
        return int(sequences.starts[row])

    def validate(self, task: Any, model: nn.Module) -> dict[str, float]:
        """loss, perplexity, token_accuracy, and accuracy of the choice among the classes."""
        values = super().validate(task, model)
        values["accuracy"] = float(correct(task, model, self.prepared.split("val").rows).mean())
        return values

    def measure(self, task: Any, model: nn.Module) -> Scores:
        """accuracy on tasks that nothing was trained on; loss, perplexity, token_accuracy and ece of their labels."""
        result, _ = scoring.teacher_forced(task, model, "test")
        split = task.split("test")
        metrics = scoring.token_metrics(result, int(scoring.scored_tokens(split.sequences).sum()))
        right = correct(task, model, split.rows)
        metrics["accuracy"] = float(right.mean())
        return Scores(metrics, {"accuracy": right, "loss": result.per_row()})


def score(rows: Sequences, parts: Sequence[Sequence[tuple[str, bool]]], tokenizer: Any) -> Sequences:
    """The same rows with the tokens of some parts scored; ``parts`` are each row's, without what begins and ends it.

    A part ends where a word ends, so that it has the tokens that it has within the row.
    """
    texts = sorted({text for row in parts for text, _ in row})
    tokens = dict(zip(texts, map(len, encode(texts, tokenizer)), strict=True))
    chosen = np.zeros(tuple(rows.ids.shape), dtype=bool)
    for i, row in enumerate(parts):
        place = 1
        for text, scored in row:
            chosen[i, place : place + tokens[text]] = scored
            place += tokens[text]
    return replace(rows, labels=rows.ids.long().masked_fill(~torch.from_numpy(chosen), IGNORE))


def encode_episodes(rows: Sequence[Episode], tokenizer: Any, length: int) -> Sequences:
    """Episodes to rows ``start, demonstrations, query, label, eos`` of which label and ``eos`` are scored."""
    return encode_pairs([row.prompt for row in rows], [row.response for row in rows], tokenizer, length)[0]


@torch.no_grad()
def likelihoods(task: Any, model: nn.Module, rows: Sequence[Episode]) -> Tensor:
    """(N, C) mean log-likelihood in nats per token of the name of each class as the label of each of N episodes.

    Length-normalised, as MetaICL compares options (Min et al., NAACL 2022, section 3.2): names differ in their number
    of tokens. Every episode has as many options as the first.
    """
    model.eval()
    tokenizer = task.tokenizer_of(model)
    start, prompts = start_id(tokenizer), encode([row.prompt for row in rows], tokenizer)
    names = sorted({option for row in rows for option in row.options})
    tokens = dict(zip(names, encode([f" {name}" for name in names], tokenizer), strict=True))
    pairs = [
        ([start, *prompt], tokens[option]) for row, prompt in zip(rows, prompts, strict=True) for option in row.options
    ]
    sequences = pack([[*prompt, *name] for prompt, name in pairs], [len(p) for p, _ in pairs], pad_id(tokenizer))
    means = []
    for batch in sequences.batches(task.spec.evaluation.batch_size, ""):
        batch = batch.to(task.device)
        nll = torch.zeros(batch.scored.shape, device=task.device)
        nll[batch.scored] = token_nll(scored_logits(model, batch), targets_of(batch))
        means.append((-nll.sum(dim=1) / batch.scored.sum(dim=1)).cpu())
    return torch.cat(means).view(len(rows), -1)


def choices(task: Any, model: nn.Module, rows: Sequence[Episode]) -> np.ndarray:
    """(N,) the most likely class of each episode, by its name."""
    places = likelihoods(task, model, rows).argmax(dim=1).tolist()
    return np.array([row.options[place] for row, place in zip(rows, places, strict=True)])


def correct(task: Any, model: nn.Module, rows: Sequence[Episode]) -> np.ndarray:
    """(N,) 1 where the most likely class is the right one."""
    right: np.ndarray = choices(task, model, rows) == np.array([row.label for row in rows])
    return right.astype(np.float64)
