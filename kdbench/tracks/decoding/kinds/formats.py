"""Word problems in required output formats, and how decoders are told of a format."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kdbench.task import Scores
from kdbench.tracks.decoding.data.formats import FORMATS, FormatProblem, make_formats
from kdbench.tracks.decoding.decoders.base import Decoded, Decoder
from kdbench.tracks.decoding.decoders.formatted import FormatDecoder
from kdbench.tracks.decoding.kinds.problems import Problems
from kdbench.tracks.llm.data.encoding import Sequences, encode
from kdbench.tracks.llm.generation import Prompts
from kdbench.tracks.llm.networks.tokenizers import start_id


class Formats(Problems):
    """Word problems in six output formats."""

    row = FormatProblem

    def problems(self, name: str) -> list[Any]:
        return make_formats(self.data, name, getattr(self.data, name))

    def stage_rows(self, objective: str) -> Sequences:
        """``lm`` is every token of the rows, so that a target can also write without a prompt."""
        rows = self.prepared.split("train").sequences
        return rows.plain() if objective == "lm" else rows

    def task_prompts(self, task: Any, split: str, rows: Sequence[int] | None = None) -> Prompts:
        """The prompts of a split (or of chosen rows of it) without instructions on the format."""
        problems = task.split(split).rows
        rows = range(len(problems)) if rows is None else rows
        ids = encode([problems[row].task for row in rows], task.tokenizer)
        return Prompts([[start_id(task.tokenizer), *prompt] for prompt in ids], torch.tensor(list(rows)), split)

    def write(self, task: Any, decoder: Decoder, split: str, **options: Any) -> tuple[list[str], Decoded]:
        """Responses of a decoder to a split, greedy unless ``options`` of :meth:`DecodingTask.decode` say otherwise.

        A :class:`FormatDecoder` is told of the format and reads the task alone; for others it is in the prompt.
        """
        problems: list[FormatProblem] = task.split(split).rows
        if not isinstance(decoder, FormatDecoder):
            done = task.decode(decoder, task.prompts_of(split, torch.arange(len(problems))).ids, **options)
            return task.tokenizer.batch_decode(done.tokens, skip_special_tokens=True), done
        whole = Decoded([[] for _ in problems], [0] * len(problems))
        for name, required in FORMATS.items():
            rows = [row for row, problem in enumerate(problems) if problem.format == name]
            if not rows:
                continue
            bound = decoder.in_format(required)
            done = task.decode(bound, self.task_prompts(task, split, rows).ids, **options)
            for place, row in enumerate(rows):
                whole.tokens[row], whole.forwards[row] = done.tokens[place], done.forwards[place]
            for key, values in done.extra.items():
                every = whole.extra.setdefault(key, [0.0] * len(problems))
                for place, row in enumerate(rows):
                    every[row] = values[place]
        return task.tokenizer.batch_decode(whole.tokens, skip_special_tokens=True), whole

    def judge(self, problems: Sequence[FormatProblem], texts: Sequence[str]) -> dict[str, np.ndarray]:
        """(N,) each, 0 or 1: ``format_accuracy`` (right answer in the required format), ``compliance`` (the format,
        whatever the answer), ``task_accuracy`` (right answer, whatever the format)."""
        judged = [(p.check(text), p.complies(text), p.solves(text)) for p, text in zip(problems, texts, strict=True)]
        columns = np.array(judged, dtype=np.float64).T
        return dict(zip(("format_accuracy", "compliance", "task_accuracy"), columns, strict=True))

    def study(self, task: Any, decoder: Decoder) -> dict[str, float]:
        """What else a method may say of its decoder on the test data; the artifact ``formats.json`` has it by format.

        ``format_accuracy/json`` and so on, and the means of what the decoder counts by prompt.
        """
        texts, done = self.write(task, decoder, "test")
        problems = task.split("test").rows
        judged = self.judge(problems, texts)
        names = np.array([problem.format for problem in problems])
        table = {
            name: {measure: float(values[names == name].mean()) for measure, values in judged.items()}
            for name in FORMATS
        }
        example = {name: texts[int((names == name).argmax())] for name in FORMATS}
        found = {"formats": table, "examples": example}
        task.artifact("formats.json").write_text(json.dumps(found, indent=1) + "\n")
        return {
            **{f"format_accuracy/{name}": row["format_accuracy"] for name, row in table.items()},
            **{f"{name}_mean": float(np.mean(values)) for name, values in done.extra.items()},
        }

    def measure(self, task: Any, model: Any) -> Scores:
        """format_accuracy, compliance and task_accuracy of greedy responses, tokens per forward of the target, and
        tokens_per_second of wall time, all prompts of a format at once."""
        started = time.perf_counter()
        texts, done = self.write(task, model, "test")
        seconds = time.perf_counter() - started
        judged = self.judge(task.split("test").rows, texts)
        metrics = {name: float(values.mean()) for name, values in judged.items()}
        metrics |= {
            "block_efficiency": done.block_efficiency,
            "tokens_per_second": sum(map(len, done.tokens)) / seconds,
        }
        return Scores(metrics, judged)
