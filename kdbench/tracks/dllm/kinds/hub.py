"""Prompts and responses of a Hugging Face data set or of local files, in the tokens of the model."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any

import numpy as np
import torch

from kdbench.errors import JobError
from kdbench.tracks.decoding.data.problems import Problem, answer_in
from kdbench.tracks.dllm.batches import Prompts
from kdbench.tracks.dllm.kinds.base import Kind, Split
from kdbench.tracks.llm.data.specs import HubInstructData

log = logging.getLogger(__name__)


class HubProblems(Kind):
    """Prompts are padded on the left; a response is right where it ends in the answer that the reference ends in."""

    single = frozenset({"reference"})
    names = ("reference",)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that comes with the teacher."""
        from kdbench.tracks.llm.networks.hf import load_tokenizer

        return load_tokenizer(self.spec.teacher)  # type: ignore[arg-type]

    @property
    def mask(self) -> int:  # type: ignore[override]
        return self._special[0]

    @property
    def eos(self) -> int:  # type: ignore[override]
        return self._special[1]

    @cached_property
    def _special(self) -> tuple[int, int]:
        from kdbench.tracks.dllm.networks.hub import special_tokens

        return special_tokens(self.spec.teacher, self.tokenizer)  # type: ignore[arg-type]

    @property
    def vocabulary(self) -> int:  # type: ignore[override]
        return len(self.tokenizer)

    def problem(self, rng: np.random.Generator) -> Problem:
        raise JobError(f"the problems of {self.spec.name} are read, not generated")

    def solves(self, problem: Problem, response: str) -> bool:
        """The last number of the last line, or the whole line."""
        return problem.check(response)

    def text(self, tokens: Any) -> str:
        ids = list(tokens)
        ids = ids[: ids.index(self.eos)] if self.eos in ids else ids
        said: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return said

    def _prompt(self, text: str) -> list[int]:
        if self.data.template == "chat":
            if not self.tokenizer.chat_template:
                name = self.spec.teacher.name  # type: ignore[union-attr]
                raise JobError(f"the tokenizer of {name!r} has no chat template: say data.template: plain")
            said = [{"role": "user", "content": text}]
            ids = self.tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=True, return_dict=True)
            return list(ids["input_ids"])
        return list(self.tokenizer(f"{text}\n", add_special_tokens=False)["input_ids"])

    def make(self, name: str) -> Split:
        """Items that fit, in the order of the data set. Raises ``JobError`` where none does."""
        from kdbench.tracks.llm.networks.hf import instruct_items

        data = self.data
        common = {field: getattr(data, field) for field in ("path", "config", "revision", "splits", "train")}
        sizes = {"val": data.val, "test": data.test}
        source = HubInstructData(prompt=data.prompt_column, response=data.response_column, **common, **sizes)
        ids, answers, problems, sizes_out = [], [], [], []
        for item in instruct_items(source, name):
            prompt = self._prompt(item.instruction)
            response = self.tokenizer(item.response, add_special_tokens=False)["input_ids"]
            if len(prompt) > data.prompt or (name == "train" and len(response) >= data.length):
                sizes_out.append((len(prompt), len(response)))
                continue
            ids.append([self.eos] * (data.prompt - len(prompt)) + prompt)
            answers.append((response + [self.eos] * data.length)[: data.length])
            problems.append(Problem(item.instruction, item.response, answer_in(item.response) or "", "reference"))
        if sizes_out:
            log.info("%s: %d %s items do not fit and are left out", self.spec.name, len(sizes_out), name)
        if not problems:
            least = min(sizes_out, default=(0, 0))
            raise JobError(
                f"no {name} item of {data.path} fits {data.prompt} tokens of prompt and {data.length} of response; "
                f"the one with the shortest prompt has {least[0]} and {least[1]}"
            )
        lengths = torch.tensor([len(self._prompt(problem.prompt)) for problem in problems])
        present = torch.arange(data.prompt) >= data.prompt - lengths[:, None]
        rows = torch.zeros(len(problems), dtype=torch.int64)
        return Split(Prompts(torch.tensor(ids), present), torch.tensor(answers), rows, self.names, problems)
