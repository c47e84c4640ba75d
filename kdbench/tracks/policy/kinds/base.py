"""What every family of worlds has to say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from kdbench.cache import Cache
from kdbench.errors import JobError
from kdbench.task import Scores
from kdbench.tracks.policy.policies.base import Learned, Policy

if TYPE_CHECKING:
    from kdbench.tracks.policy.spec import PolicySpec
    from kdbench.tracks.policy.task import PolicyTask


class Kind:
    """One family of worlds, bound to a task's specification and cache."""

    returns: ClassVar[type[Learned]] = Policy
    """What methods of this family return."""

    def __init__(self, spec: PolicySpec, cache: Cache) -> None:
        self.spec, self.cache = spec, cache

    def prepare(self) -> None:
        """Make what all jobs share."""

    def build_student(self) -> nn.Module:
        """A new student, initialised from the global generators."""
        raise NotImplementedError

    def loader(self, task: PolicyTask, size: int) -> Any:
        """Batches of the training data. Raises ``JobError`` where there are none."""
        raise JobError(f"{self.spec.name} has no data: what is known of it is found by acting")

    def floor(self, task: PolicyTask) -> Any:
        """The floor: uniformly random actions."""
        raise NotImplementedError

    def ceiling(self, task: PolicyTask) -> Any:
        """The ceiling: a scripted expert, or an optimal policy."""
        raise NotImplementedError

    def validate(self, task: PolicyTask, model: Any) -> dict[str, float]:
        """Metrics from the validation seeds."""
        raise NotImplementedError

    def measure(self, task: PolicyTask, model: Any) -> Scores:
        """All metrics from the test seeds; called in evaluation alone."""
        raise NotImplementedError
