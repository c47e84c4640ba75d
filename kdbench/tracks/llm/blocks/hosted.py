"""A teacher behind an endpoint that speaks the chat-completions protocol of OpenAI, as hosted and local servers do."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from kdbench.errors import JobError, UsageError
from kdbench.tracks.llm.blocks.authors import Request
from kdbench.tracks.llm.blocks.guidance import Mistake

Found = TypeVar("Found")

SYSTEM = (
    "You write training data for a text classifier. You are given its classes, examples, its mistakes and its "
    "performance, and a number of new texts to write for each class. Write realistic and varied texts that differ from "
    "those shown, and that make the classifier better where it is weak. Answer with a JSON object of the form "
    '{"texts": [{"text": "...", "label": "<name of a class>"}]} and nothing else.'
)


LABELS = (
    "You check the labels of texts for a text classifier. You are given its classes and numbered texts, and how many "
    "classes to name for each text. Name those that the text most probably is of, the most probable one first. Answer "
    'with a JSON object of the form {"labels": [["<name of a class>", ...], ...]}, one list for each text in their '
    "order, and nothing else."
)


def prompt(request: Request) -> str:
    """The request in words: classes, quotas, report, confusions, examples, mistakes and hard negatives."""
    names = request.classes
    parts = ["Classes: " + ", ".join(names)]
    if request.performance is not None:
        rows = [
            f"{name}: precision {row.precision:.2f}, recall {row.recall:.2f}, F1 {row.f1:.2f}, {row.support} texts"
            for name, row in zip(names, request.performance.report, strict=True)
        ]
        parts.append("Performance on validation data:\n" + "\n".join(rows))
        often = [f"{names[a]} taken for {names[b]}: {n}" for a, b, n in request.performance.confusions[:20]]
        if often:
            parts.append("Most frequent confusions:\n" + "\n".join(often))
    if request.examples:
        parts.append("Examples:\n" + "\n".join(_line(text, names[label]) for text, label in request.examples))
    if request.mistakes:
        parts.append("Texts that the classifier gets wrong:\n" + _mistakes(request.mistakes, names))
    if request.hard_negatives:
        title = "Hard negatives, which it gets wrong and is sure of:\n"
        parts.append(title + _mistakes(request.hard_negatives, names))
    wanted = [f"{name}: {count}" for name, count in zip(names, request.quotas, strict=True) if count]
    parts.append("Write this many new texts of each class:\n" + "\n".join(wanted))
    return "\n\n".join(parts)


def _line(text: str, name: str) -> str:
    return json.dumps({"text": text, "label": name})


def _mistakes(mistakes: Sequence[Mistake], names: Sequence[str]) -> str:
    return "\n".join(
        json.dumps(
            {
                "text": mistake.text,
                "label": names[mistake.label],
                "taken for": names[mistake.predicted],
                "confidence": round(mistake.confidence, 2),
            }
        )
        for mistake in mistakes
    )


@dataclass
class HostedAuthor:
    """Asks a hosted model. The key comes from an environment variable and is written nowhere."""

    base_url: str
    """Up to and without ``/chat/completions``, such as ``https://api.openai.com/v1``."""
    model: str
    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; empty: the endpoint needs none."""
    temperature: float = 1.0
    per_call: int = 32
    """Texts asked for in one call at most."""
    timeout: float = 120.0
    """Seconds of one call."""
    attempts: int = 4
    """Calls before giving up: the server may be busy, and an answer may be no JSON."""
    pause: float = 2.0
    """Seconds before the second attempt, twice as long before each further one."""
    spend: Callable[[str, float], None] = lambda unit, amount: None
    """Called with ``teacher_queries`` (calls that were answered), ``prompt_tokens`` and ``generated_tokens``."""

    def __post_init__(self) -> None:
        """Raises ``UsageError`` where the address, the model or the key is missing."""
        if not self.base_url.startswith(("http://", "https://")) or not self.model:
            raise UsageError(
                f"a hosted teacher needs base_url and model, not {self.base_url!r} and {self.model!r}",
                hint='for example base_url: "http://localhost:8000/v1" and model: "Qwen/Qwen2.5-7B-Instruct"',
            )
        if self.key_env and not os.environ.get(self.key_env):
            raise UsageError(f"the environment variable {self.key_env} with the key of {self.base_url} is not set")

    def generate(self, request: Request) -> list[tuple[str, int]]:
        """Texts in calls of at most ``per_call``; of classes that the request does not name, none.

        More texts of a class than its quota are dropped; where there are fewer, there are fewer. Raises ``JobError``
        where no attempt brings a usable answer.
        """
        found: list[tuple[str, int]] = []
        for quotas in portions(request.quotas, self.per_call):
            asked = replace(request, quotas=quotas)
            found += self._once(SYSTEM, prompt(asked), partial(parse, request=asked))
        return found

    def probable(self, texts: Sequence[str], classes: Sequence[str], top: int) -> list[tuple[int, ...]]:
        """As the model answers when it is asked for the ``top`` classes of each text, ``per_call`` texts at a time."""
        found: list[tuple[int, ...]] = []
        for begin in range(0, len(texts), self.per_call):
            part = texts[begin : begin + self.per_call]
            rows = [json.dumps({"number": i, "text": text}) for i, text in enumerate(part)]
            asked = f"Classes: {', '.join(classes)}\n\nClasses to name for each text: {top}\n\n" + "\n".join(rows)
            found += self._once(LABELS, asked, partial(parse_labels, classes=classes, count=len(part), top=top))
        return found

    def _once(self, system: str, asked: str, read: Callable[[str], list[Found]]) -> list[Found]:
        reasons = []
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                answer = self._call(system, asked)
                return read(answer["choices"][0]["message"]["content"])
            except urllib.error.HTTPError as error:
                if error.code not in (408, 409, 429) and error.code < 500:
                    raise JobError(f"{self.base_url} refused the request: {error.code} {error.reason}") from error
                reasons.append(f"{error.code} {error.reason}")
            except (OSError, http.client.HTTPException) as error:  # no connection, or one that broke
                reasons.append(str(error))
            except (ValueError, KeyError, IndexError, TypeError) as error:
                reasons.append(f"an answer that is not as asked for ({type(error).__name__}: {error})")
        raise JobError(f"{self.base_url} gave no usable answer in {self.attempts} attempts: {'; '.join(reasons)}")

    def _call(self, system: str, text: str) -> dict[str, Any]:
        body = {
            "model": self.model,
            "temperature": self.temperature,
            "response_format": {"type": "json_object"},
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": text}],
        }
        headers = {"Content-Type": "application/json"}
        if self.key_env:
            headers["Authorization"] = f"Bearer {os.environ[self.key_env]}"
        call = urllib.request.Request(
            f"{self.base_url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        with urllib.request.urlopen(call, timeout=self.timeout) as reply:
            answer: dict[str, Any] = json.load(reply)
        usage = answer.get("usage") or {}
        self.spend("teacher_queries", 1)
        self.spend("prompt_tokens", usage.get("prompt_tokens", 0))
        self.spend("generated_tokens", usage.get("completion_tokens", 0))
        return answer


def portions(quotas: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Quotas split into parts of at most ``size`` texts each, class after class.

    >>> portions((3, 0, 2), 4)
    [(3, 0, 1), (0, 0, 1)]
    """
    wanted = [label for label, count in enumerate(quotas) for _ in range(count)]
    parts = [Counter(wanted[begin : begin + size]) for begin in range(0, len(wanted), size)]
    return [tuple(part[label] for label in range(len(quotas))) for part in parts]


def unfenced(content: str) -> Any:
    """The JSON of an answer; a Markdown fence around it is taken away."""
    stripped = content.strip()
    if stripped.startswith("```"):
        stripped = stripped.split("\n", 1)[-1].rsplit("```", 1)[0]
    return json.loads(stripped)


def parse_labels(content: str, classes: Sequence[str], count: int, top: int) -> list[tuple[int, ...]]:
    """The classes of each of ``count`` texts, ``top`` at most; names of no class are left out.

    Raises ``ValueError`` for an answer about another number of texts.
    """
    labels = {name: label for label, name in enumerate(classes)}
    rows = unfenced(content)["labels"]
    if len(rows) != count:
        raise ValueError(f"labels of {len(rows)} texts, not of {count}")
    return [tuple(labels[name] for name in map(str, row) if name in labels)[:top] for row in rows]


def parse(content: str, request: Request) -> list[tuple[str, int]]:
    """Texts and labels of an answer, at most the quota of each class. Raises ``ValueError`` where it has no text."""
    left = list(request.quotas)
    labels = {name: label for label, name in enumerate(request.classes)}
    found = []
    for row in unfenced(content)["texts"]:
        text, label = str(row["text"]).strip(), labels.get(str(row["label"]).strip(), -1)
        if text and label >= 0 and left[label] > 0:
            left[label] -= 1
            found.append((text, label))
    if not found:
        raise ValueError("no text of a class that was asked for")
    return found
