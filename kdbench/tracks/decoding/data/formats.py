"""Word problems whose answer is required in one of six output formats.

A prompt either states the task alone, or the task with an instruction on the format. The rationale is the same in
both; what has to follow it is not. Validation and test data ask for a format in every row, each as often as the others.
A share of the tasks alone is answered in a format that nobody asked for: as a pretrained model, a target then knows how
each of them goes on once it has begun, whatever the prompt said.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from kdbench.tracks.decoding.blocks.templates import DIGITS, LETTERS, Literal, Slot, Template, template
from kdbench.tracks.decoding.data import problems
from kdbench.tracks.decoding.data.arith import word_problem
from kdbench.tracks.decoding.data.problems import FINAL, Problem
from kdbench.tracks.decoding.data.specs import FormatsData

SCORES = ("1", "2", "3", "4", "5")
_ABOUT = re.compile(r"(\w+) has \d+ (\w+)\.")
_NUMBER = re.compile(r"\d+")
_ANSWER = Slot("answer", DIGITS, 1, 3)


@dataclass(frozen=True)
class Format:
    """A required output: what a prompt says of it, what fits, and what is right."""

    name: str
    instruction: str
    template: Template
    """Any text first, then the literals and slots of the format."""
    pattern: str
    """What stands at the end, with ``{who}``, ``{what}`` and ``{answer}``."""
    only: tuple[str, ...] = ()
    """Answers that it can express; none: all."""

    def fill(self, prompt: str, answer: str) -> str:
        """The end of a response to ``prompt`` with this answer."""
        found = _ABOUT.match(prompt)
        assert found is not None, f"no word problem: {prompt!r}"
        values = {"who": found[1], "what": found[2], "answer": answer}
        return re.sub(r"\{(who|what|answer)\}", lambda match: values[match[1]], self.pattern)

    def right(self, prompt: str, answer: str) -> dict[str, str]:
        """What the slots of a right response hold."""
        held = self.template.read(self.fill(prompt, answer))
        assert held is not None
        return held


FORMATS = {
    made.name: made
    for made in (
        Format(
            "json",
            'Reply with {"answer": number}.',
            template(Slot(stop=('{"answer": ',)), _ANSWER, "}"),
            '{"answer": {answer}}',
        ),
        Format(
            "score",
            "Reply with Score: 1-5.",
            template(Slot(stop=("Score: ",)), Literal(SCORES, "answer")),
            "Score: {answer}",
            SCORES,
        ),
        Format(
            "event",
            "Reply with lines who, what, total.",
            template(
                Slot(stop=("who: ",)),
                Slot("who", LETTERS, 1, 8, stop=("\nwhat: ",)),
                Slot("what", LETTERS, 1, 8, stop=("\ntotal: ",)),
                _ANSWER,
            ),
            "who: {who}\nwhat: {what}\ntotal: {answer}",
        ),
        Format(
            "tag",
            "Reply with <answer>number</answer>.",
            template(Slot(stop=("<answer>",)), _ANSWER, "</answer>"),
            "<answer>{answer}</answer>",
        ),
        Format("box", "Reply with [[number]].", template(Slot(stop=("[[",)), _ANSWER, "]]"), "[[{answer}]]"),
        Format(
            "call",
            "Reply with set(name, number).",
            template(Slot(stop=("set(",)), Slot("who", LETTERS, 1, 8, stop=(", ",)), _ANSWER, ")"),
            "set({who}, {answer})",
        ),
    )
}


@dataclass(frozen=True)
class FormatProblem(Problem):
    """A word problem whose answer is required in a format, or in none."""

    task: str = ""
    """The prompt without any instruction on the format."""
    format: str = ""
    """Name of the required format; empty: none."""

    @property
    def content(self) -> str:
        return self.task

    def complies(self, response: str) -> bool:
        """Whether ``response`` has the required format."""
        return not self.format or FORMATS[self.format].template.read(response) is not None

    def check(self, response: str) -> bool:
        """Whether ``response`` gives the right answer, in every slot of the required format."""
        if not self.format:
            return super().check(response)
        required = FORMATS[self.format]
        return required.template.read(response) == required.right(self.task, self.answer)

    def solves(self, response: str) -> bool:
        """Whether the last number of ``response`` is the right answer, in whatever format."""
        numbers = _NUMBER.findall(response)
        return bool(numbers) and numbers[-1] == self.answer


def in_format(problem: Problem, name: str, asked: bool = True) -> FormatProblem:
    """A word problem with its answer in a format (``""``: in none), ``asked`` for or not; the rationale stays."""
    if not name:
        fields = (problem.prompt, problem.response, problem.answer, problem.level)
        return FormatProblem(*fields, task=problem.prompt)
    required = FORMATS[name]
    rationale = problem.response[: problem.response.index(FINAL)]
    response = rationale + required.fill(problem.prompt, problem.answer)
    prompt = f"{problem.prompt}{required.instruction}\n" if asked else problem.prompt
    return FormatProblem(prompt, response, problem.answer, problem.level, problem.prompt, name)


def _one(
    rng: np.random.Generator, make: Callable[[np.random.Generator], Problem], name: str, asked: bool
) -> FormatProblem:
    """A problem with an answer that the format can express."""
    only = FORMATS[name].only if name else ()
    while True:
        problem = make(rng)
        if not only or problem.answer in only:
            return in_format(problem, name, asked)


def make_formats(data: FormatsData, split: str, count: int) -> list[FormatProblem]:
    """``count`` problems of a split (see :func:`problems.generate`), formats in turn.

    Training data ask for a format in ``data.share`` of them, and of the others ``data.unasked`` have one; the rows of
    other splits all ask.
    """
    alone = round(count * (1 - data.share)) if split == "train" else 0
    unasked = round(alone * data.unasked)
    counts = {("", False): alone - unasked}
    for asked, number in ((True, count - alone), (False, unasked)):
        shares = {name: (number + place) // len(FORMATS) for place, name in enumerate(reversed(FORMATS))}
        counts |= {(name, asked): shares[name] for name in FORMATS}
    make = partial(word_problem, steps=data.steps, largest=data.largest)
    kinds = []
    for place, ((name, asked), number) in enumerate(counts.items()):
        # a seed for each, so that formats do not ask the same questions
        made = partial(_one, make=make, name=name, asked=asked)
        kinds.append(problems.generate(made, split, number, data.seed * 100 + place) if number else [])
    turns = [row for turn in range(max(map(len, kinds[1:]))) for rows in kinds[1:] for row in rows[turn : turn + 1]]
    return [*kinds[0], *turns]  # type: ignore[list-item]
