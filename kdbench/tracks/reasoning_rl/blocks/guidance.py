"""Guidance for problems that a policy never solves: verified solutions of several teachers, those that it follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdbench.task import count_parameters
from kdbench.tracks.llm.data.encoding import encode
from kdbench.tracks.llm.networks.models import targets_of
from kdbench.tracks.reasoning_rl.blocks.rollouts import rows_behind
from kdbench.tracks.reasoning_rl.blocks.scoring import chosen, mean_logp, token_logits
from kdbench.tracks.reasoning_rl.data.problems import Problem
from kdbench.tracks.reasoning_rl.data.styles import STYLES, styled
from kdbench.tracks.reasoning_rl.data.verify import split_response

if TYPE_CHECKING:
    from kdbench.tracks.reasoning_rl.blocks.rollouts import Rollouts
    from kdbench.tracks.reasoning_rl.task import ReasoningTask


class Guides:
    """One verified response of each teacher to each problem, for as many problems as are asked for.

    A teacher answers a problem once, when it is first asked, with up to ``tries`` samples of which the first right one
    is kept; one that solves nothing has no guidance to give. What was written is part of the state.
    """

    def __init__(
        self, task: ReasoningTask, teachers: Sequence[nn.Module], *, tries: int = 4, temperature: float = 0.6
    ) -> None:
        self.task, self.teachers, self.tries, self.temperature = task, list(teachers), tries, temperature
        self.generator = task.generator("guides")
        self.stored: dict[int, dict[int, list[int]]] = {}

    def of(self, problems: Sequence[Problem]) -> list[dict[int, list[int]]]:
        """For each problem the ids of the responses that there are, by the number of their teacher."""
        missing = list({problem.index: problem for problem in problems if problem.index not in self.stored}.values())
        self.stored |= {problem.index: {} for problem in missing}
        for number, teacher in enumerate(self.teachers):
            if not missing:
                break
            made = self.task.rollouts(
                teacher, missing, group=self.tries, temperature=self.temperature, generator=self.generator
            )
            for row in reversed(made.correct.nonzero()[:, 0].tolist()):
                self.stored[made.problems[row].index][number] = made.responses[row]
        return [self.stored[problem.index] for problem in problems]

    def state_dict(self) -> dict[str, Any]:
        rows = [[index, number, ids] for index, found in self.stored.items() for number, ids in found.items()]
        return {"asked": list(self.stored), "written": rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.stored = {int(index): {} for index in state["asked"]}
        for index, number, ids in state["written"]:
            self.stored[int(index)][int(number)] = [int(token) for token in ids]


def before_answer(text: str, answer: str) -> str:
    """A response up to the last place where its answer is; the whole of it where the answer is not there.

    >>> before_answer("3 + 4 = 7 ; ans 7", "7")
    '3 + 4 = 7 ; ans '
    """
    place = text.rfind(answer) if answer else -1
    return text if place < 0 else text[:place]


@torch.no_grad()
def comprehension(
    task: ReasoningTask, model: nn.Module, problems: Sequence[Problem], responses: Sequence[Sequence[int]]
) -> Tensor:
    """(C,) how well a model follows each response: ``0.9 p + 0.1 f`` on the CPU.

    p is the mean *probability* of the tokens of the true answer behind the question and the response's reasoning, in
    which what the response itself gives as the answer is left out; f is 1 where its format is right. Every forward is
    metered as ``flops``.
    """
    texts = task.decode(responses)
    verdicts = [task.kind.verify(problem, text) for problem, text in zip(problems, texts, strict=True)]
    reasons = [before_answer(text, verdict.parsed or "") for text, verdict in zip(texts, verdicts, strict=True)]
    asked = task.encode([task.prompt(problem) for problem in problems])
    heads = [[*prompt, *ids] for prompt, ids in zip(asked, encode(reasons, task.tokenizer), strict=True)]
    answers = encode([problem.answer for problem in problems], task.tokenizer)
    batch = rows_behind(heads, answers, task.pad).to(task.device)
    was_training = model.training
    model.eval()
    try:
        probability = chosen(token_logits(model, batch), targets_of(batch)).exp()
    finally:
        model.train(was_training)
    if task.phase == "train":
        task.budget.spend("flops", 2.0 * count_parameters(model) * int(batch.attention_mask.sum()))
    means = mean_logp(probability, batch.scored.nonzero()[:, 0], len(answers)).cpu()
    return 0.9 * means + 0.1 * torch.tensor([float(verdict.format_ok) for verdict in verdicts])


def shaped(logp: Tensor, offset: float = 0.1) -> Tensor:
    """``f(p) = p / (p + offset)`` of log-probabilities: rare tokens of a teacher get the larger gradient."""
    probability = logp.exp()
    return probability / (probability + offset)


def style_of(problem: Problem, text: str) -> str | None:
    """The style (:data:`STYLES`) that most steps of a response agree with, the first among equals; None without one."""
    steps, _ = split_response(text)
    counts = {}
    for style in STYLES:
        gold = styled(problem, style)
        counts[style] = sum(step == gold[i] for i, step in enumerate(steps[: len(gold)]))
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else None


def styles_per_problem(rollouts: Rollouts, texts: Sequence[str]) -> float:
    """Mean number of different styles among the right responses to a problem; ``texts`` of all responses."""
    found: dict[int, set[str]] = {int(name): set() for name in rollouts.group.tolist()}
    for row in rollouts.correct.nonzero()[:, 0].tolist():
        style = style_of(rollouts.problems[row], texts[row])
        if style is not None:
            found[int(rollouts.group[row])].add(style)
    return sum(map(len, found.values())) / len(found)
