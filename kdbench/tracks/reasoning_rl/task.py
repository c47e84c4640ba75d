"""``ReasoningTask``: what a method of the track ``reasoning_rl`` receives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.errors import JobError, did_you_mean
from kdbench.task import Scores, count_parameters
from kdbench.track import Track
from kdbench.tracks.llm.data.encoding import TextBatch, encode
from kdbench.tracks.llm.data.prepared import Prepared
from kdbench.tracks.llm.generation import generate
from kdbench.tracks.llm.networks.models import targets_of
from kdbench.tracks.llm.networks.tokenizers import pad_id, start_id
from kdbench.tracks.llm.task import LLMTask
from kdbench.tracks.reasoning_rl import TRACK, checkpoints, gate
from kdbench.tracks.reasoning_rl.blocks.edits import members
from kdbench.tracks.reasoning_rl.blocks.rollouts import Edit, RolloutLoader, Rollouts, rows_behind
from kdbench.tracks.reasoning_rl.blocks.scoring import chosen, token_logits
from kdbench.tracks.reasoning_rl.data.problems import Problem
from kdbench.tracks.reasoning_rl.data.verify import reward as reward_of
from kdbench.tracks.reasoning_rl.kinds.base import Reasoning
from kdbench.tracks.reasoning_rl.spec import Policy, ReasoningSpec
from kdbench.training.state import Values


class Watching(Values):
    """What rollouts were like since the curve was last added to."""

    kept = ("sums", "counts")

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Means since the last call."""
        values = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return values


class ReasoningTask(LLMTask):
    """One task of the track: problems with a verifier, a student that solves some, a teacher that solves more."""

    spec: ReasoningSpec
    home: ClassVar[Track] = TRACK

    def __init__(self, spec: ReasoningSpec, **rest: Any) -> None:
        super().__init__(spec, **rest)
        self.watching = Watching()
        self._checkpoints: dict[str, nn.Module] = {}

    # --- problems -------------------------------------------------------------------------------------------------

    @cached_property
    def _data(self) -> Prepared:
        if not isinstance(self.spec.teacher, Policy):
            return super()._data
        from kdbench.tracks.reasoning_rl.data.vocabulary import tokenizer

        return Prepared(self.spec, self.cache, tokenizer())

    @property
    def kind(self) -> Reasoning:
        kind = self._data.kind
        assert isinstance(kind, Reasoning)
        return kind

    @property
    def max_new(self) -> int:
        """Longest response in tokens."""
        return self.spec.evaluation.max_new

    @property
    def pad(self) -> int:
        """Token that fills rows up; masks, not this id, say what is padding."""
        return pad_id(self.tokenizer)

    def problems(self, split: str = "train", families: Sequence[str] | None = None) -> list[Problem]:
        """Problems of a split, or those of some families; ``train`` and ``val`` are open, others raise in ``train``."""
        rows: list[Problem] = self.split(split).rows
        return rows if families is None else [problem for problem in rows if problem.family in families]

    def prompt(self, problem: Problem, rule: str | None = None) -> str:
        """The text of the question alone, behind the token of a rule where one is given."""
        return self.kind.plain(problem, rule)

    def with_reference(self, problem: Problem, reference: str | None = None) -> str:
        """The text of the question behind a solution of it; the problem's own, or the one that is given."""
        return self.kind.with_reference(problem, reference)

    def with_reasons(self, problem: Problem, explanation: str) -> str:
        """The text of the question behind its solution and an explanation of that."""
        return self.kind.with_reasons(problem, explanation)

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """Ids of prompts, the start token in front."""
        return [[start_id(self.tokenizer), *ids] for ids in encode(prompts, self.tokenizer)]

    def encode_responses(self, responses: Sequence[str]) -> list[list[int]]:
        """Ids of responses, the end token behind."""
        return [[*ids, self.tokenizer.eos_token_id] for ids in encode(responses, self.tokenizer)]

    def decode(self, responses: Sequence[Sequence[int]]) -> list[str]:
        """Text of responses, without special tokens."""
        texts: list[str] = self.tokenizer.batch_decode([list(row) for row in responses], skip_special_tokens=True)
        return texts

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def build_student(self) -> nn.Module:
        student = self.spec.student
        return checkpoints.load(self, student) if isinstance(student, Policy) else super().build_student()

    def load_teacher(self) -> nn.Module:
        teacher = self.spec.teacher
        return checkpoints.load(self, teacher) if isinstance(teacher, Policy) else super().load_teacher()

    def checkpoint(self, name: str, *, trainable: bool = False) -> Any:
        """A network by name: frozen and shared, or a private trainable copy.

        ``student_base``, ``student_sft`` (what :meth:`student` starts from), ``teacher_sft``, ``teacher_rl`` (the
        teacher), ``expert_<name>`` and ``peer_1`` to ``peer_4`` where the task has them. Raises ``JobError`` elsewhere.
        """
        names = self.spec.checkpoint_names()
        if name not in names:
            raise JobError(
                f"task {self.spec.name} has no checkpoint {name!r}; it has {', '.join(names)}"
                f"{' ' + hint if (hint := did_you_mean(name, names)) else ''}"
            )
        if name == "teacher_rl":
            return self.teacher(trainable=trainable)
        if trainable:
            return self.place(self._load_checkpoint(name)).requires_grad_(True).train()
        if name not in self._checkpoints:
            self._checkpoints[name] = self.share(self._load_checkpoint(name))
        return self._checkpoints[name]

    def _load_checkpoint(self, name: str) -> nn.Module:
        policies = self.spec.policies()
        if name in policies:
            return checkpoints.load(self, policies[name])
        if name == "student_sft":
            return super().build_student()
        from kdbench.tracks.llm.networks.hf import load_model

        model: nn.Module = load_model(self.spec.models[name], self.device, trainable=False)
        return model

    def own_parts(self) -> list[Any]:
        return [*super().own_parts(), self.watching]

    def prepare(self) -> None:
        """Data, all checkpoints, and their calibration."""
        for name in self.kind.names:
            self._data.split(name)
        for policy in self.spec.policies().values():
            if policy.stages:
                checkpoints.folder_of(self, policy)
        if self.spec.gate is not None:
            self.gap()

    def gap(self) -> dict[str, float]:
        """What the checkpoints are like on validation problems; measured once per task, kept in the cache."""
        return gate.measured(self)

    def board_problems(self) -> list[str]:
        """Why the checkpoints of the task say nothing about distillation."""
        self.require_evaluation()
        return gate.reasons(self.gap(), self.spec.gate) if self.spec.gate is not None else []

    @contextmanager
    def one_query(self, batch: TextBatch) -> Iterator[None]:
        """Meter one forward of a frozen network over ``batch``, whichever of its parts it goes through."""
        before = self.budget.spent.get("teacher_queries", 0)
        yield
        if self.phase == "train":
            self.budget.set("teacher_queries", before + len(batch))
            self.budget.spend("teacher_tokens", int(batch.scored.sum()))

    # --- rollouts -------------------------------------------------------------------------------------------------

    def sample(
        self,
        model: nn.Module,
        prompts: Sequence[Sequence[int]],
        *,
        temperature: float = 1.0,
        max_new: int | None = None,
        top_p: float = 1.0,
        top_k: int = 0,
        generator: torch.Generator | None = None,
        metered: bool = True,
    ) -> list[list[int]]:
        """A response of ``model`` to each prompt, ids with the end token; ``temperature`` 0 is greedy.

        In training spends ``generated_tokens`` (``teacher_tokens`` where the model is frozen) and ``flops``.
        """
        written: list[list[int]] = []
        queries = self.budget.spent.get("teacher_queries", 0)
        size = self.spec.evaluation.batch_size
        for start in range(0, len(prompts), size):
            written += generate(
                model,
                prompts[start : start + size],
                eos=self.tokenizer.eos_token_id,
                pad=self.pad,
                max_new=self.max_new if max_new is None else max_new,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                generator=generator,
            ).tokens
        if self.phase == "train":
            frozen = not any(p.requires_grad for p in model.parameters())
            tokens = sum(map(len, written))
            self.budget.set("teacher_queries", queries + (len(prompts) if frozen and metered else 0))
            if not self.budget.spent["teacher_queries"]:
                del self.budget.spent["teacher_queries"]
            if metered:
                self.budget.spend("teacher_tokens" if frozen else "generated_tokens", tokens)
                read = tokens + sum(map(len, prompts))
                self.budget.spend("flops", 2.0 * count_parameters(model) * read)
        return written

    @torch.no_grad()
    def behaviour(self, model: nn.Module, batch: TextBatch, temperature: float) -> Tensor:
        """(N,) log-probabilities of the response tokens by the training forward, without gradient."""
        was_training = model.training
        model.eval()
        try:
            logp = chosen(token_logits(model, batch), targets_of(batch), temperature or 1.0)
        finally:
            model.train(was_training)
        return logp

    def judged(
        self,
        problems: Sequence[Problem],
        prompts: Sequence[Sequence[int]],
        responses: Sequence[Sequence[int]],
        *,
        rule: str | None = None,
        reward: str | None = None,
        metered: bool = True,
    ) -> Rollouts:
        """Rollouts of given responses, each a group of its own, ``old_logp`` all 0; spends ``reward_calls``."""
        eos = self.tokenizer.eos_token_id
        texts = self.decode(responses)
        verdicts = [self.kind.verify(problem, text, rule) for problem, text in zip(problems, texts, strict=True)]
        cut = [not row or row[-1] != eos for row in responses]
        rewards = [
            reward_of(verdict, short, reward or self.spec.reward) for verdict, short in zip(verdicts, cut, strict=True)
        ]
        batch = rows_behind(prompts, responses, self.pad).to(self.device)
        if self.phase == "train" and metered:
            self.budget.spend("reward_calls", len(texts))
        return Rollouts(
            problems=list(problems),
            prompts=[list(row) for row in prompts],
            responses=[list(row) for row in responses],
            verdicts=verdicts,
            reward=torch.tensor(rewards, device=self.device),
            group=torch.arange(len(texts), device=self.device),
            truncated=torch.tensor(cut, dtype=torch.bool, device=self.device),
            origin=torch.full((len(texts),), -1, device=self.device),
            batch=batch,
            old_logp=torch.zeros(int(batch.scored.sum()), device=self.device),
        )

    def rollouts(
        self,
        model: nn.Module,
        problems: Sequence[Problem],
        *,
        group: int = 1,
        temperature: float = 1.0,
        max_new: int | None = None,
        top_p: float = 1.0,
        top_k: int = 0,
        generator: torch.Generator | None = None,
        prompts: Sequence[str] | None = None,
        rule: str | None = None,
        reward: str | None = None,
        metered: bool = True,
    ) -> Rollouts:
        """``group`` responses to each problem, judged; ``prompts`` (texts, one a problem) in place of the plain ones.

        ``rule`` sets a rule in the prompt and for the verifier; ``reward`` is a kind of
        :func:`~kdbench.tracks.reasoning_rl.data.verify.reward`, the task's where none is given.
        """
        texts = [self.prompt(problem, rule) for problem in problems] if prompts is None else prompts
        rows = [ids for ids in self.encode(texts) for _ in range(group)]
        asked = [problem for problem in problems for _ in range(group)]
        written = self.sample(
            model,
            rows,
            temperature=temperature,
            max_new=max_new,
            top_p=top_p,
            top_k=top_k,
            generator=generator,
            metered=metered,
        )
        made = self.judged(asked, rows, written, rule=rule, reward=reward, metered=metered)
        made.group = torch.arange(len(problems), device=self.device).repeat_interleave(group)
        made.temperature = temperature or 1.0
        if self.phase == "train" and metered:
            made.old_logp = self.behaviour(model, made.batch, temperature)
            self.budget.spend("flops", 2.0 * count_parameters(model) * int(made.batch.attention_mask.sum()))
        return made

    def on_policy(
        self,
        model: nn.Module,
        *,
        prompts: int | None = None,
        families: Sequence[str] | None = None,
        edit: Edit | None = None,
        minibatches: int = 1,
        purpose: str = "rollout",
        **sampling: Any,
    ) -> RolloutLoader:
        """Rollouts of ``model`` as it is at each step, for :meth:`fit`; see :class:`~.blocks.rollouts.RolloutLoader`.

        ``prompts`` (default: the recipe's batch size) problems of the training split, or of some ``families``, with
        ``group`` responses each; ``sampling`` goes to :meth:`rollouts`. ``edit(rollouts)`` may replace members of the
        groups; ``minibatches`` are the updates that a round is used for.
        """
        return RolloutLoader(
            self,
            model,
            self.problems("train", families),
            prompts=self.spec.recipe.batch_size if prompts is None else prompts,
            parts=self.spec.recipe.accumulate,
            edit=edit,
            minibatches=minibatches,
            purpose=purpose,
            **{"group": 8, **sampling},
        )

    def accuracy(
        self,
        model: nn.Module,
        problems: Sequence[Problem],
        *,
        samples: int = 4,
        temperature: float | None = None,
        max_new: int | None = None,
        prompts: Sequence[str] | None = None,
        rule: str | None = None,
        generator: torch.Generator | None = None,
        metered: bool = True,
    ) -> np.ndarray:
        """(P, samples) 1 where a sampled response is right; ``temperature`` defaults to the evaluation's."""
        made = self.rollouts(
            model,
            problems,
            group=samples,
            temperature=self.spec.evaluation.temperature if temperature is None else temperature,
            max_new=max_new,
            generator=torch.Generator().manual_seed(self.stream("eval")) if generator is None else generator,
            prompts=prompts,
            rule=rule,
            metered=metered,
        )
        return made.correct.view(len(problems), samples).numpy().astype(float)

    # --- the curve ------------------------------------------------------------------------------------------------

    def watch(self, rollouts: Rollouts) -> None:
        """Remember what rollouts are like, for the next point of the curve."""
        solved = [bool(rollouts.correct[rows].any()) for rows in members(rollouts)]
        self.watching.add(
            {
                "reward": float(rollouts.reward.mean()),
                "solved": sum(solved) / len(solved),
                "response_tokens": float(rollouts.lengths.double().mean()),
            }
        )

    def note(self, **values: float | Tensor) -> None:
        """Values that a loss wants in the curve beside its parts: means over the steps between two points."""
        self.watching.add({name: float(value) for name, value in values.items()})

    def watched(self) -> dict[str, float]:
        """Means since the last call, and the tokens generated so far."""
        return self.watching.take() | {"generated_tokens": self.budget.spent.get("generated_tokens", 0.0)}

    # --- evaluation -----------------------------------------------------------------------------------------------

    def score_test(self, model: Any) -> Scores:
        from kdbench.tracks.llm.scoring import official

        was_training = model.training
        model.eval()
        try:
            scores = self.kind.measure(self, model)
        finally:
            model.train(was_training)
        return Scores(official(self, scores.metrics), scores.examples)

    def frozen_copy(self, model: nn.Module) -> nn.Module:
        """A private copy that does not change and needs no gradient, in evaluation mode."""
        return deepcopy(model).requires_grad_(False).eval()
