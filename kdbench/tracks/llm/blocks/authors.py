"""Teachers that write labelled texts on request.

Every teacher of this kind has ``generate(request) -> list[(text, label)]``, and ``probable(texts, classes, top)`` to
check what it wrote: :class:`LocalAuthor` is a small language model that was trained on the pool of a task,
:class:`kdbench.tracks.llm.blocks.hosted.HostedAuthor` a model behind an endpoint. What a student knows of its own
performance travels in the request.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdbench.errors import UsageError
from kdbench.task import count_parameters, seed_of
from kdbench.tracks.llm.blocks.guidance import Mistake, Performance
from kdbench.tracks.llm.data.classify import Example
from kdbench.tracks.llm.data.cpython import rank
from kdbench.tracks.llm.data.encoding import Sequences, encode, pack
from kdbench.tracks.llm.evaluate import class_logits, macro_f1
from kdbench.tracks.llm.generation import generate
from kdbench.tracks.llm.networks import models, teachers
from kdbench.tracks.llm.networks.tokenizers import pad_id, start_id

if TYPE_CHECKING:
    from kdbench.tracks.llm.task import LLMTask


@dataclass(frozen=True)
class Request:
    """What a teacher is asked for, and what it is told."""

    classes: tuple[str, ...]
    """Names; labels count in them."""
    quotas: tuple[int, ...]
    """Texts wanted of each class."""
    examples: tuple[tuple[str, int], ...] = ()
    """Labelled texts, right ones for the student where it has been trained."""
    mistakes: tuple[Mistake, ...] = ()
    """Texts that the student gets wrong."""
    hard_negatives: tuple[Mistake, ...] = ()
    """Those that it is surest of."""
    performance: Performance | None = None
    """The student's report by class, None before it has one."""


class Author(Protocol):
    """A teacher that writes."""

    def generate(self, request: Request) -> list[tuple[str, int]]:
        """New texts with their labels, about as many of each class as its quota says."""
        ...

    def probable(self, texts: Sequence[str], classes: Sequence[str], top: int) -> list[tuple[int, ...]]:
        """For each text the ``top`` classes that it most probably is of, the best one first."""
        ...


def header(name: str) -> str:
    """The line that says of which class the following text is."""
    return f"### {name}\n"


def pool_rows(examples: Sequence[Example], classes: Sequence[str], tokenizer: Any, length: int) -> Sequences:
    """Rows of ``header, a similar text of the class, header, text, eos``, every token scored.

    Two of three texts come after the most similar other one of their class (cosine of TF-IDF), so that an author
    learns to write what resembles an example; the others come after their header alone. Texts have at most ``length``
    tokens.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(sublinear_tf=True).fit_transform(example.text for example in examples)
    labels = np.array([example.label for example in examples])
    heads = encode([header(name) for name in classes], tokenizer)
    bodies = [ids[:length] for ids in encode([example.text for example in examples], tokenizer)]
    rows = []
    for i, example in enumerate(examples):
        head = heads[example.label]
        row = [start_id(tokenizer)]
        others = np.flatnonzero((labels == example.label) & (np.arange(len(labels)) != i))
        if len(others) and int(rank(example.text)[:4], 16) % 3:
            nearest = others[int((vectors[others] @ vectors[i].T).toarray().argmax())]
            row += head + bodies[nearest] + [tokenizer.eos_token_id]
        rows.append(row + head + bodies[i] + [tokenizer.eos_token_id])
    return pack(rows, [1] * len(rows), pad_id(tokenizer))


def author_network(task: LLMTask) -> nn.Module:
    """A causal language model of the task's pool, conditioned on a class and an example; frozen.

    Trained once for each task and ``teacher_seed``, when the task is prepared. Raises ``UsageError`` where the task has
    no author of its own.
    """
    net = task.spec.author_net()
    if net is None:
        raise UsageError(f"task {task.spec.name} has no author of its own", hint="ask a hosted one: author: hosted")

    def build() -> nn.Module:
        return models.build(net, task.tokenizer)

    def make(folder: Path) -> None:
        length = task.spec.data.length
        rows = pool_rows(task._data.split("pool").rows, task.class_names, task.tokenizer, length)
        seed = seed_of("llm", "author", task.spec.teacher_seed) % 2**32
        teachers.make(folder, net, build, lambda objective: rows, task.tokenizer, seed, task.device)

    network = task._load_weights(build(), task.cache.get("teacher", task.spec.author_identity(), make))
    return network.to(task.device).requires_grad_(False).eval()


@dataclass
class LocalAuthor:
    """Writes with a language model of :func:`author_network`.

    Each text follows an example of its class: hard negatives first, so that what the student gets wrong is what more
    is written of, then the other mistakes, then the examples; none where a class has none.
    """

    task: LLMTask
    network: nn.Module
    temperature: float = 0.8
    top_p: float = 0.95
    batch_size: int = 64
    used: list[tuple[str, int]] = field(default_factory=list)
    """Example and class of each text of the latest request, in its order; without an example its text is empty."""

    def __post_init__(self) -> None:
        self.generator = self.task.generator("author")

    def generate(self, request: Request) -> list[tuple[str, int]]:
        """Exactly the quotas; spends ``teacher_queries``, one per text, ``generated_tokens`` and ``flops``."""
        task, length = self.task, self.task.spec.data.length
        self.used = [pair for label, wanted in enumerate(request.quotas) for pair in sources(request, label, wanted)]
        heads = encode([header(name) for name in request.classes], task.tokenizer)
        bodies = [ids[:length] for ids in encode([text for text, _ in self.used], task.tokenizer)]
        start, eos = start_id(task.tokenizer), task.tokenizer.eos_token_id
        prompts = [
            [start, *(heads[label] + body + [eos] if body else []), *heads[label]]
            for body, (_, label) in zip(bodies, self.used, strict=True)
        ]
        texts: list[str] = []
        for begin in range(0, len(prompts), self.batch_size):
            part = prompts[begin : begin + self.batch_size]
            written = generate(
                self.network,
                part,
                eos=eos,
                pad=pad_id(task.tokenizer),
                max_new=length,
                temperature=self.temperature,
                top_p=self.top_p,
                generator=self.generator,
            )
            texts += task.tokenizer.batch_decode(written.tokens, skip_special_tokens=True)
            read = sum(len(prompt) for prompt in part) + written.generated
            task.budget.spend("teacher_queries", len(part))
            task.budget.spend("generated_tokens", written.generated)
            task.budget.spend("flops", 2.0 * count_parameters(self.network) * read)
        return [(text.strip(), label) for text, (_, label) in zip(texts, self.used, strict=True)]

    def probable(self, texts: Sequence[str], classes: Sequence[str], top: int) -> list[tuple[int, ...]]:
        """As classes of :func:`class_nll`; spends ``teacher_queries``, one per text, and ``flops``."""
        if not texts:
            return []
        nll, read = class_nll(self.task, self.network, texts, classes)
        self.task.budget.spend("teacher_queries", len(texts))
        self.task.budget.spend("flops", 2.0 * count_parameters(self.network) * read)
        return [tuple(int(label) for label in row[:top]) for row in nll.argsort(axis=1, kind="stable")]


def sources(request: Request, label: int, wanted: int) -> list[tuple[str, int]]:
    """``wanted`` examples of a class to write after, the most telling first, then in turn; ``""``: the class alone."""
    lists = (request.hard_negatives, request.mistakes)
    found = [mistake.text for mistakes in lists for mistake in mistakes if mistake.label == label]
    found += [text for text, owner in request.examples if owner == label]
    distinct = list(dict.fromkeys([*found, ""]))  # the class alone has its turn, too
    return [(distinct[i % len(distinct)], label) for i in range(wanted)]


# --- what it costs to classify ----------------------------------------------------------------------------------------


@torch.no_grad()
def class_nll(
    task: LLMTask, network: nn.Module, texts: Sequence[str], classes: Sequence[str]
) -> tuple[NDArray[np.float64], int]:
    """NLL (N, C) in nats of texts after the header of each class, for a local author, and how many tokens it read.

    With all classes equally frequent, the smallest is that of the most probable class.
    """
    length, start, eos = task.spec.data.length, start_id(task.tokenizer), task.tokenizer.eos_token_id
    heads = encode([header(name) for name in classes], task.tokenizer)
    found, read = np.zeros((len(texts), len(classes))), 0
    for row, ids in enumerate(encode(texts, task.tokenizer)):
        body = [*ids[:length], eos]
        prompts = [[start, *head, *body] for head in heads]
        batch = pack(prompts, [1 + len(head) for head in heads], pad_id(task.tokenizer)).batch(torch.arange(len(heads)))
        batch = batch.to(task.device)
        nll = models.token_nll(models.scored_logits(network, batch), models.targets_of(batch))
        found[row] = nll.view(len(heads), len(body)).sum(1).double().cpu().numpy()
        read += int(batch.attention_mask.sum())
    return found, read


def asked_to_classify(task: LLMTask, count: int) -> dict[str, float]:
    """accuracy, macro_f1 and gflops_per_1k of the task's author on the first test texts; measured once and cached."""
    rows = task.split("test").rows[:count]

    def make(folder: Path) -> None:
        network = author_network(task)
        nll, read = class_nll(task, network, [row.text for row in rows], task.class_names)
        guess = nll.argmin(1)
        labels = np.array([row.label for row in rows])
        flops = 2.0 * count_parameters(network) * read / len(rows)
        values = {
            "accuracy": float((guess == labels).mean()),
            "macro_f1": macro_f1(guess, labels),
            "gflops_per_1k": flops * 1e-6,
        }
        (folder / "zero_shot.json").write_text(json.dumps(values) + "\n")

    key = {**task.spec.author_identity(), "role": "zero-shot", "test": task.split("test").digest, "count": len(rows)}
    values: dict[str, float] = json.loads((task.cache.get("zero-shot", key, make) / "zero_shot.json").read_text())
    return values


@torch.no_grad()
def per_thousand(task: LLMTask, model: nn.Module) -> tuple[float, float]:
    """GFLOPs, and seconds on this machine, of a classifier for a thousand test texts."""
    sequences = task.split("test").sequences
    sequences = sequences.rows(torch.arange(min(256, len(sequences))))
    model.eval()
    with FlopCounterMode(display=False) as flops:
        class_logits(model, sequences, "test", task.device)
    started = time.perf_counter()
    class_logits(model, sequences, "test", task.device)
    seconds = time.perf_counter() - started
    return flops.get_total_flops() / len(sequences) * 1e-6, seconds / len(sequences) * 1e3
