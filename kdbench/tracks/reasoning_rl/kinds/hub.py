"""Questions of a Hugging Face data set or of local files, whose answers are compared."""

from __future__ import annotations

from typing import Any

from kdbench.errors import JobError
from kdbench.tracks.llm.data.encoding import Sequences
from kdbench.tracks.reasoning_rl.data import answers
from kdbench.tracks.reasoning_rl.data.problems import Problem
from kdbench.tracks.reasoning_rl.data.specs import HubMathData
from kdbench.tracks.reasoning_rl.data.verify import Verdict
from kdbench.tracks.reasoning_rl.kinds.base import Reasoning

INSTRUCTION = "Reason step by step, and put your final answer within \\boxed{{}}."
BEHIND = (
    "Here is a reference solution:\n{reference}\n\nAfter understanding it, solve the problem in your own words and "
    "derive the same final answer."
)
EXPLAINED = "Here is an explanation of it:\n{explanation}\n\n"


class Solution(Problem):
    """A question with a worked solution in free text; ``steps`` has the whole of it."""

    @property
    def solution(self) -> str:
        return self.steps[0]


class HubMath(Reasoning):
    """Questions and worked solutions; a response is right where the answer that it states equals the reference's."""

    row = Solution
    data: HubMathData

    def content(self, name: str) -> dict[str, Any]:
        from kdbench.tracks.llm.networks.hf import data_digest

        return {"content": data_digest(self.data, name), "template": bool(self.prepared.tokenizer.chat_template)}

    def ask(self, text: str) -> str:
        """A request as the model's chat template puts it, or as plain text where it has none."""
        tokenizer = self.prepared.tokenizer
        if not tokenizer.chat_template:
            return f"{text}\n"
        asked: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        start = tokenizer.bos_token or ""  # encoding puts it in front itself
        return asked[len(start) :] if start and asked.startswith(start) else asked

    def plain(self, problem: Problem, rule: str | None = None) -> str:
        if rule is not None:
            raise JobError(f"task {self.prepared.spec.name} has no rules, only the procedural problems have")
        return self.ask(f"{problem.prompt}\n\n{INSTRUCTION.format()}")

    def with_reference(self, problem: Problem, reference: str | None = None) -> str:
        text = problem.solution if reference is None else reference
        if not text:
            return self.plain(problem)
        return self.ask(f"{problem.prompt}\n\n{BEHIND.format(reference=text)}\n\n{INSTRUCTION.format()}")

    def with_reasons(self, problem: Problem, explanation: str) -> str:
        told = EXPLAINED.format(explanation=explanation) + BEHIND.format(reference=problem.solution)
        return self.ask(f"{problem.prompt}\n\n{told}\n\n{INSTRUCTION.format()}")

    def verify(self, problem: Problem, text: str, rule: str | None = None) -> Verdict:
        parsed = answers.stated(text)
        correct = parsed is not None and answers.same(parsed, problem.answer)
        said = "ok" if correct else f"The answer is not {parsed}." if parsed else "There is no final answer."
        return Verdict(correct, parsed is not None, parsed, feedback=said)

    def problems_of(self, name: str) -> list[Problem]:
        from kdbench.tracks.llm.networks.hf import instruct_items, load_rows

        items, data = instruct_items(self.data, name), self.data
        rows = load_rows(data, name)
        for column in (data.answer, data.source):
            if column is not None and column not in rows.column_names:
                raise JobError(f"{data.path!r} has no column {column!r}; it has: {', '.join(rows.column_names)}")
        gold = rows[data.answer][: len(items)] if data.answer else [answers.stated(item.response) for item in items]
        source = rows[data.source][: len(items)] if data.source else ["math"] * len(items)
        found: list[Problem] = []
        for item, answer, domain in zip(items, gold, source, strict=True):
            if answer is None:
                raise JobError(
                    f"a solution of {data.path!r} states no answer (#### or \\boxed): {item.response[-80:]!r}; "
                    "name the column that has it in data.answer"
                )
            steps, index = (item.response,), len(found)
            found.append(Solution(str(domain), 1, item.instruction, steps, str(answer), item.instruction, index=index))
        return found

    def make(self, name: str) -> tuple[Sequences, list[Any]]:
        return self.encode_problems(self.problems_of(name), "drop")
