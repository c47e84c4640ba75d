"""Responses of a policy to training problems, with what the verifier says of them, as batches to train on.

Everything about tokens is flat: N response tokens, row-major over R responses. The same responses behind other prompts
have the same N tokens in the same order, so that logits under two contexts align by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdbench.task import seed_of
from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.tracks.llm.generation import Prompts, Responses, as_batch
from kdbench.tracks.llm.networks.models import targets_of
from kdbench.tracks.reasoning_rl.data.problems import Problem
from kdbench.tracks.reasoning_rl.data.verify import Verdict

if TYPE_CHECKING:
    from kdbench.tracks.reasoning_rl.task import ReasoningTask


@dataclass
class Rollouts:
    """R responses of one policy; those to one problem are a group."""

    problems: list[Problem]
    """R of them: a group has the same one."""
    prompts: list[list[int]]
    """Ids of the prompt that each response was sampled behind."""
    responses: list[list[int]]
    """Ids, the end token included where there is one."""
    verdicts: list[Verdict]
    reward: Tensor
    """(R,) float32, 0 for a response without an end."""
    group: Tensor
    """(R,) int64."""
    truncated: Tensor
    """(R,) bool: no end token."""
    origin: Tensor
    """(R,) int64: -1 for responses of the policy, else the number of the teacher that wrote it."""
    batch: TextBatch
    """Prompts and responses; the response tokens are scored."""
    old_logp: Tensor
    """(N,) log-probabilities of the policy when it sampled, by the training forward at ``temperature``."""
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.responses)

    @cached_property
    def sequence(self) -> Tensor:
        """(N,) int64: the response that each token belongs to."""
        return self.batch.scored.nonzero()[:, 0]

    @cached_property
    def targets(self) -> Tensor:
        """(N,) int64: the response tokens."""
        return targets_of(self.batch)

    @property
    def lengths(self) -> Tensor:
        """(R,) tokens of each response."""
        return torch.tensor([len(row) for row in self.responses])

    @property
    def correct(self) -> Tensor:
        """(R,) bool; a response without an end is not."""
        right = torch.tensor([verdict.correct for verdict in self.verdicts], dtype=torch.bool)
        return right & ~self.truncated.cpu()

    @property
    def from_policy(self) -> Tensor:
        """(N,) bool: whether the policy wrote the token itself."""
        return self.per_token(self.origin < 0)

    def per_token(self, values: Tensor) -> Tensor:
        """Values (R,) of responses to (N,), one for each token."""
        return values.to(self.sequence.device)[self.sequence]

    def context(self, prompts: Sequence[Sequence[int]], pad: int) -> TextBatch:
        """The same responses behind other prompts, one for each: the scored tokens are the same N in the same order."""
        return rows_behind(prompts, self.responses, pad).to(self.batch.input_ids.device)

    def rows(self, which: Tensor) -> Rollouts:
        """Some responses (indices in ascending order)."""
        chosen = which.tolist()
        kept = torch.isin(self.sequence.cpu(), which.cpu()).to(self.old_logp.device)
        place = which.to(self.reward.device)
        return replace(
            self,
            **{
                name: [getattr(self, name)[i] for i in chosen]
                for name in ("problems", "prompts", "responses", "verdicts")
            },
            **{name: getattr(self, name)[place] for name in ("reward", "group", "truncated", "origin")},
            batch=self.batch.rows(which.to(self.batch.input_ids.device)),
            old_logp=self.old_logp[kept],
        )


def rows_behind(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad: int) -> TextBatch:
    """Rows of prompt and response, padded on the right, of which the response is scored."""
    ids = [list(row) for row in prompts]
    written = [list(row) for row in responses]
    blank = Responses(written, [[0.0] * len(row) for row in written])
    return replace(as_batch(Prompts(ids, torch.full((len(ids),), -1)), blank, pad), logprobs=None)


Edit = Callable[[Rollouts], Rollouts]


class RolloutLoader:
    """Rollouts without end: problems are drawn, the policy of the moment answers, the answers are given out in parts.

    A round has ``prompts`` problems for each of ``parts`` batches. Problems and tokens come from random streams that
    all methods of a job's seed share, so that they are compared in pairs. What was sampled and not given out yet is
    part of the state.
    """

    def __init__(
        self,
        task: ReasoningTask,
        policy: nn.Module,
        problems: Sequence[Problem],
        *,
        prompts: int,
        parts: int = 1,
        edit: Edit | None = None,
        minibatches: int = 1,
        purpose: str = "rollout",
        **sampling: Any,
    ) -> None:
        self.task, self.policy, self.problems = task, policy, list(problems)
        self.prompts, self.parts, self.edit, self.minibatches = prompts, parts, edit, minibatches
        self.sampling = sampling
        self.choice, self.tokens = task.generator("data"), task.generator("data")
        # of one job's seed all methods draw alike, from streams of their own for problems and tokens
        self.tokens.manual_seed(seed_of(task.stream("data"), purpose))
        self.rounds = 0
        self._waiting: list[Rollouts] = []

    def __iter__(self) -> Iterator[Rollouts]:
        return self

    def __next__(self) -> Rollouts:
        if not self._waiting:
            self._waiting = self._round()
        return self._waiting.pop(0)

    def _round(self) -> list[Rollouts]:
        total = self.prompts * self.parts
        chosen = torch.randint(len(self.problems), (total,), generator=self.choice).tolist()
        sampled = self.task.rollouts(
            self.policy, [self.problems[i] for i in chosen], generator=self.tokens, **self.sampling
        )
        if self.edit is not None:
            sampled = self.edit(sampled)
        self.rounds += 1
        pieces = min(self.parts * self.minibatches, total)
        if pieces == 1:
            return [sampled]
        names = sampled.group.unique().cpu().tensor_split(pieces)
        return [sampled.rows(torch.isin(sampled.group.cpu(), part).nonzero()[:, 0]) for part in names]

    def state_dict(self) -> dict[str, Any]:
        """The rounds so far and what is waiting; the states of the generators are not part of it."""
        waiting = [
            {
                "index": [problem.index for problem in part.problems],
                "prompts": part.prompts,
                "responses": part.responses,
                **{name: getattr(part, name) for name in ("reward", "group", "origin", "old_logp")},
            }
            for part in self._waiting
        ]
        return {"rounds": self.rounds, "waiting": waiting}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next batch is the one that would have come."""
        self.rounds = state["rounds"]
        by_index = {problem.index: problem for problem in self.problems}
        self._waiting = []
        for part in state["waiting"]:
            problems = [by_index[i] for i in part["index"]]
            rule = self.sampling.get("rule")
            again = self.task.judged(problems, part["prompts"], part["responses"], rule=rule, metered=False)
            device = again.reward.device
            kept = {name: part[name].to(device) for name in ("reward", "group", "origin", "old_logp")}
            self._waiting.append(replace(again, **kept, temperature=self.sampling.get("temperature", 1.0)))
