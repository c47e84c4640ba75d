"""Instructions and responses: procedural with verifiable answers, or of a Hugging Face data set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from kdbench.task import Scores, seed_of
from kdbench.tracks.llm import scoring
from kdbench.tracks.llm.data import instruct, text
from kdbench.tracks.llm.data.encoding import Sequences, chunk_documents, encode, encode_pairs
from kdbench.tracks.llm.data.instruct import Item
from kdbench.tracks.llm.data.specs import HubInstructData, InstructData, TextData, WrittenData
from kdbench.tracks.llm.data.written import Chat, write
from kdbench.tracks.llm.evaluate import distinct, exact_matches, respond, rouge_l
from kdbench.tracks.llm.kinds.base import LanguageKind
from kdbench.tracks.llm.networks import smollm


class Pairs(LanguageKind):
    """Rows that are a prompt and a response; the response is scored."""

    row = Item

    def encode_items(self, items: list[Item], length: int, too_long: str) -> tuple[Sequences, list[Item]]:
        """Tokens of items; ``too_long`` says what becomes of items of more than ``length`` tokens."""
        prompts, responses = [item.prompt for item in items], [item.response for item in items]
        sequences, kept = encode_pairs(prompts, responses, self.prepared.tokenizer, length, too_long=too_long)
        return sequences, [items[i] for i in kept]

    def encode_rows(self, rows: Sequence[Any], tokenizer: Any) -> Sequences:
        prompts, responses = [item.prompt for item in rows], [item.response for item in rows]
        return encode_pairs(prompts, responses, tokenizer, 1 << 20)[0]

    def prompt_tokens(self, sequences: Sequences, row: int) -> int:
        """Everything before the response."""
        return int(sequences.starts[row])

    def respond(self, task: Any, model: nn.Module, items: Sequence[Item], **sampling: Any) -> list[str]:
        """Text that the model answers each item with; greedy unless ``sampling`` says otherwise."""
        options = task.spec.evaluation
        limits = {"max_new": options.max_new, "batch_size": options.batch_size}
        prompts = [item.prompt for item in items]
        texts, _ = respond(model, prompts, task.tokenizer_of(model), **limits, **sampling)
        return texts

    def measure_answers(self, task: Any, model: nn.Module) -> tuple[Scores, list[str]]:
        """exact_match, distinct_2, response_tokens and the token metrics of the references; and the greedy answers."""
        items: list[Item] = task.split("test").rows
        texts = self.respond(task, model, items)
        right = exact_matches(items, texts)
        result, _ = scoring.teacher_forced(task, model, "test")
        metrics = scoring.token_metrics(result, int(scoring.scored_tokens(task.split("test").sequences).sum()))
        metrics |= {
            "exact_match": float(right.mean()),
            "distinct_2": distinct([text.split() for text in texts]),
            "response_tokens": sum(len(ids) for ids in encode(texts, task.tokenizer)) / len(items),
        }
        return Scores(metrics, {"exact_match": right, "loss": result.per_row()}), texts


class HubInstruct(Pairs):
    """Prompts and responses of a Hugging Face data set or of local files."""

    data: HubInstructData

    def content(self, name: str) -> dict[str, Any]:
        from kdbench.tracks.llm.networks.hf import data_digest

        return {"content": data_digest(self.data, name)}

    def make(self, name: str) -> tuple[Sequences, list[Any]]:
        from kdbench.tracks.llm.networks.hf import instruct_items

        return self.encode_items(instruct_items(self.data, name), self.data.length, "drop")

    def measure(self, task: Any, model: nn.Module) -> Scores:
        """As :meth:`Pairs.measure_answers`, with rouge_l of greedy responses to all items."""
        scores, texts = self.measure_answers(task, model)
        items = task.split("test").rows
        rouge = np.array([rouge_l(item.answers, text) for item, text in zip(items, texts, strict=True)])
        return Scores(scores.metrics | {"rouge_l": float(rouge.mean())}, scores.examples | {"rouge_l": rouge})


class WrittenInstruct(HubInstruct):
    """Everyday instructions with the answers of a pretrained model."""

    data: WrittenData  # type: ignore[assignment]
    row = Chat

    def content(self, name: str) -> dict[str, Any]:
        return {"writer": smollm.key()}

    def make(self, name: str) -> tuple[Sequences, list[Any]]:
        return self.encode_items(list(write(self.data, name, self.cache)), self.data.length, "error")


class Instruct(Pairs):
    """Procedural instructions with verifiable answers."""

    data: InstructData

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("train", "val", "test", "ood") if self.data.ood else ("train", "val", "test")

    def make(self, name: str) -> tuple[Sequences, list[Any]]:
        data = self.data
        items = instruct.held_out(data) if name == "ood" else instruct.generate(data, name, getattr(data, name))
        return self.encode_items(items, data.length, "error")

    def stage_rows(self, objective: str) -> Sequences:
        """``lm`` is every token of the items, and what the knowledge base says as plain text."""
        rows = self.prepared.split("train").sequences
        if objective != "lm":
            return rows
        statements = TextData(domains=("facts",), persons=self.data.persons, seed=self.data.seed)
        encoded, _ = chunk_documents(text.facts(statements), self.prepared.tokenizer, min(96, self.data.length))
        return rows.plain() + encoded

    def tokenizer_texts(self) -> Iterable[str]:
        return (item.text for item in instruct.generate(self.data, "train", self.data.train))

    def validate(self, task: Any, model: nn.Module) -> dict[str, float]:
        """loss, perplexity, token_accuracy and exact_match."""
        values, items = super().validate(task, model), self.prepared.split("val").rows
        values["exact_match"] = float(exact_matches(items, self.respond(task, model, items)).mean())
        return values

    def measure(self, task: Any, model: nn.Module) -> Scores:
        """As :meth:`Pairs.measure_answers`, with the parts of exact_match, and ROUGE-L.

        ``loss_ood`` and ``token_accuracy_ood`` are those of the references of the families that nothing is trained on.
        ``rouge_l`` is the mean over sampled responses (temperature 1) to the grammar family.
        """
        scores, _ = self.measure_answers(task, model)
        metrics, items = scores.metrics, task.split("test").rows
        parts: dict[str, list[float]] = defaultdict(list)
        for item, value in zip(items, scores.examples["exact_match"].tolist(), strict=True):
            parts[f"exact_match/{item.family}"].append(value)
            if item.distractor is not None:
                parts["exact_match_distractors"].append(value)
        metrics |= {name: float(np.mean(values)) for name, values in parts.items()}
        if "ood" in self.names:
            # no model answers families that none was trained on, so what moves is how it takes the right answer
            unseen, _ = scoring.teacher_forced(task, model, "ood")
            of_unseen = scoring.token_metrics(unseen, int(scoring.scored_tokens(task.split("ood").sequences).sum()))
            metrics |= {f"{name}_ood": of_unseen[name] for name in ("loss", "token_accuracy")}
        grammar, seeds = [item for item in items if item.family == "rewrite"], task.spec.evaluation.rouge_seeds
        if grammar and seeds:
            values = []
            for number in range(seeds):
                generator = torch.Generator().manual_seed(seed_of(task.spec.name, "rouge", number))
                sampled = self.respond(task, model, grammar, temperature=1.0, generator=generator)
                values += [rouge_l(item.answers, text) for item, text in zip(grammar, sampled, strict=True)]
            metrics["rouge_l"] = float(np.mean(values))
        return Scores(metrics, scores.examples)
