"""``PolicyTask``: what a method of the track ``policy`` receives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from kdbench.errors import ArtifactError, JobError
from kdbench.task import Scores, Task
from kdbench.track import Track
from kdbench.tracks.policy import TRACK, gate
from kdbench.tracks.policy.batches import Episodes
from kdbench.tracks.policy.blocks.logged import Logged
from kdbench.tracks.policy.blocks.sessions import Session, explored
from kdbench.tracks.policy.kinds import kind_of
from kdbench.tracks.policy.kinds.base import Kind
from kdbench.tracks.policy.policies.base import Learned, Policy, Privileged
from kdbench.tracks.policy.policies.tabular import Exploration
from kdbench.tracks.policy.rollouts import Rollout
from kdbench.tracks.policy.spec import PolicySpec
from kdbench.tracks.policy.worlds.base import Observation, World
from kdbench.tracks.policy.worlds.tabular import MDP


class PolicyTask(Task):
    """One task of the track: a world, what may be learned from, a student.

    ``train`` returns a :class:`~kdbench.tracks.policy.policies.base.Policy`; tables or an exploration in tabular
    families. A *step* is one update of the network that is returned; an environment step is metered as ``env_steps``.
    """

    spec: PolicySpec
    home: ClassVar[Track] = TRACK

    @cached_property
    def kind(self) -> Kind:
        """What the track does with worlds of this kind."""
        return kind_of(self.spec.world.kind)(self.spec, self.cache)

    def _of(self, name: str) -> Any:
        found = getattr(self.kind, name, None)
        if found is None:
            raise JobError(f"{self.spec.name} is of the family {self.spec.family!r}, which has no {name}")
        return found

    # --- simulated families ---------------------------------------------------------------------------------------

    @property
    def robots(self) -> tuple[str, ...]:
        """Bodies of the world, in the order of their numbers."""
        found: tuple[str, ...] = self._of("robots")
        return found

    def world(self, n: int, robot: str | None = None) -> World:
        """A simulator of ``n`` episodes. In ``train`` every live row of a step is one ``env_steps``."""
        world: World = self._of("world")(n, robot)
        if self.phase == "train":
            world.meter = lambda rows: self.budget.spend("env_steps", rows)
        return world

    def expert(self) -> Privileged:
        """The scripted expert, to be asked for actions in any state; in ``train`` each is one ``teacher_queries``."""
        expert: Privileged = self._of("expert")()
        if self.phase == "train":
            act = expert.act

            def metered(obs: Observation) -> Tensor:
                self.budget.spend("teacher_queries", len(obs))
                return act(obs)

            expert.act = metered  # type: ignore[method-assign]
        return expert

    def demonstrations(self, robot: str | None = None) -> Episodes:
        """Demonstrations of all robots, or of one; on the CPU, shared: not to be changed. Metered."""
        found: Episodes = self._of("demonstrations")
        if robot is not None:
            found = found.rows(found.robot == self.robots.index(robot))
        if self.phase == "train":
            self.budget.set("demonstrations", max(self.budget.spent["demonstrations"], len(found)))
        return found

    def seeds(self, split: str, count: int) -> np.ndarray:
        """(count,) first seeds of the episodes of ``train``, ``val`` or ``test``; the latter in evaluation alone."""
        if split == "test":
            self.require_evaluation()
        found: np.ndarray = self._of("seeds")(split, count)
        return found

    def rollout(self, policy: Policy, split: str = "val", **options: Any) -> Rollout:
        """Episodes on the layouts of a split; those of ``test`` in evaluation alone.

        Options are ``robot``, ``repeats``, and those of :func:`kdbench.tracks.policy.rollouts.rollout`. In ``train``
        steps are metered as ``validation_steps``.
        """
        if split == "test":
            self.require_evaluation()
        ran: Rollout = self._of("run")(policy, split, device=self.device, **options)
        if self.phase == "train":
            self.budget.spend("validation_steps", float(ran.length.sum()))
        return ran

    # --- tabular families -----------------------------------------------------------------------------------------

    def problems(self) -> list[Logged]:
        """Family ``offline``: what is known of each problem. The episodes are metered as ``demonstrations``."""
        found: list[Logged] = self._of("problems")
        if self.phase == "train":
            self.budget.set("demonstrations", sum(len(one.data) for one in found))
        return found

    def mdps(self) -> list[MDP]:
        """The processes themselves. Raises ``TestDataError`` inside ``train``."""
        self.require_evaluation()
        found: list[MDP] = self._of("mdps")
        return found

    def sessions(self) -> list[Session]:
        """Family ``online``: one session a process, with all episodes of the budget. Asked for once."""
        found: list[Session] = self._of("sessions")(self)
        return found

    def explored(self, sessions: Sequence[Session]) -> Exploration:
        """What ``train`` of the family ``online`` returns. Raises ``OverBudget`` where episodes were not played."""
        return explored(sessions)

    # --- reference points -------------------------------------------------------------------------------------------

    def floor(self) -> Any:
        """Uniformly random actions, as a result of a method."""
        return self.kind.floor(self)

    def ceiling(self) -> Any:
        """The scripted expert, or optimal policies, as a result of a method."""
        return self.kind.ceiling(self)

    # --- data and networks ----------------------------------------------------------------------------------------

    def train_loader(self, batch_size: int | None = None) -> Any:
        return self.kind.loader(self, self.spec.recipe.batch_size if batch_size is None else batch_size)

    def build_student(self) -> nn.Module:
        return self.kind.build_student()

    def load_teacher(self) -> nn.Module:
        raise JobError(f"the teacher of {self.spec.name} is a scripted expert, not a network: see task.expert()")

    def build_teacher(self) -> nn.Module:
        return self.load_teacher()

    def prepare(self) -> None:
        """Make the demonstrations, and what the gate asks about."""
        self.kind.prepare()
        if self.spec.gate is not None:
            gate.measured(self)

    def board_problems(self) -> list[str]:
        """Why the task says nothing about policies, where it does not."""
        self.require_evaluation()
        return [] if self.spec.gate is None else gate.problems(gate.measured(self), self.spec.gate)

    # --- evaluation -----------------------------------------------------------------------------------------------

    def validate(self, model: Learned) -> dict[str, float]:
        """Metrics on the validation seeds; environment steps are metered as ``validation_steps``."""
        self.check(model)
        return self.kind.validate(self, model)

    def score_test(self, model: Learned) -> Scores:
        self.check(model)
        scores = self.kind.measure(self, model)
        wanted = [metric.name for metric in self.spec.all_metrics()]
        missing = [name for name in wanted if name not in scores.metrics]
        if missing:
            known = ", ".join(sorted(scores.metrics))
            raise JobError(
                f"{self.spec.name} names metrics that are not measured: {', '.join(missing)} (there: {known})"
            )
        return Scores({name: scores.metrics[name] for name in wanted}, scores.examples)

    # --- artifacts ------------------------------------------------------------------------------------------------

    def check(self, model: Any) -> None:
        if isinstance(model, nn.Module):
            raise ArtifactError(
                f"train returned a {type(model).__name__}, but the track 'policy' evaluates policies: "
                f"wrap the network in a {self.kind.returns.__name__}"
            )
        self.require(model, self.kind.returns)

    def save(self, model: Learned, folder: Path) -> None:
        """What the policy writes, and its kind."""
        self.check(model)
        folder.mkdir(parents=True, exist_ok=True)
        model.save(folder)
        (folder / "kdbench.json").write_text(json.dumps({"task": self.spec.name, "policy": model.kind}) + "\n")

    def load(self, folder: Path) -> Learned:
        """A policy that :meth:`save` wrote."""
        kind = json.loads((folder / "kdbench.json").read_text())["policy"]
        return Learned.of_kind(kind).load(folder, self)
