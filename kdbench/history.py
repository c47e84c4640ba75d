"""What a results folder says about the jobs of a plan: which are done, which are stale, how long the rest takes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import util
from itertools import islice
from pathlib import Path

from kdbench.cache import file_digest
from kdbench.errors import Problem, UsageError
from kdbench.job import Job, Resources, Status
from kdbench.store import spool
from kdbench.store.index import LEARNED, Gist, Likeness, OutcomeIndex, Taken

LOOK_BACK = 2000
"""Outcomes of other plans that an estimate reads at most, so that a plan stays quick in a large results folder."""


@dataclass(frozen=True)
class Expectation:
    """What past outcomes say about a job; each field is None where they say nothing."""

    seconds: float | None = None
    """Mean wall-clock time."""
    memory: int | None = None
    """Largest peak of main memory, in bytes; where jobs ran out of it, at least what they had by then."""
    gpu_memory: int | None = None
    """Largest peak on one GPU, in bytes, as torch counts it."""


@dataclass(frozen=True)
class Estimate:
    """How long the jobs that are left take."""

    seconds: float | None
    """Wall-clock time; None where nothing is known of any of them."""
    unknown: int
    """How many of them it leaves out."""
    lent: int
    """Of how many the time is that of reference results."""


@dataclass(slots=True)
class _Sum:
    """What outcomes that are alike add up to."""

    count: int = 0
    seconds: float = 0.0
    memory: int | None = None
    gpu_memory: int | None = None

    def add(self, other: _Sum) -> None:
        self.count += other.count
        self.seconds += other.seconds
        self.memory = larger(self.memory, other.memory)
        self.gpu_memory = larger(self.gpu_memory, other.gpu_memory)


class Experience:
    """What outcomes say about the time and the memory of jobs like theirs."""

    def __init__(self) -> None:
        self._sums: dict[Likeness, _Sum] = {}
        self._kinds: dict[Hashable, _Sum] = {}
        """The sums by all that outcomes are alike in; made when they are first asked for, and kept up from then on."""
        self._expected: dict[Likeness, Expectation] = {}

    def add(self, like: Likeness, status: str, taken: Taken) -> None:
        """Learn from an outcome: from one that is ``ok`` its time, and its peaks from that and from one that is
        ``oom``, which would have needed more. Other outcomes say nothing."""
        if status not in LEARNED:
            return
        timed = status == "ok"
        known = self._sums.get(like)
        if known is None:
            known = self._sums[like] = _Sum()
        new = _Sum(int(timed), taken.seconds if timed else 0.0, taken.memory, taken.gpu_memory)
        known.add(new)
        if self._kinds:
            self._spread(like, new)
        self._expected.clear()

    def _spread(self, like: Likeness, sums: _Sum) -> None:
        for kind in like.kinds():
            self._kinds.setdefault(kind, _Sum()).add(sums)

    def expect(self, like: Likeness) -> Expectation:
        """What to expect of a job; each field from the most alike outcomes that know it. Equal ones are one object."""
        if not self._kinds:
            for other, sums in self._sums.items():
                self._spread(other, sums)
        if like not in self._expected:
            known = [self._kinds[kind] for kind in like.kinds() if kind in self._kinds]
            self._expected[like] = Expectation(
                next((alike.seconds / alike.count for alike in known if alike.count), None),
                next((alike.memory for alike in known if alike.memory is not None), None),
                next((alike.gpu_memory for alike in known if alike.gpu_memory is not None), None),
            )
        return self._expected[like]


def larger(one: int | None, other: int | None) -> int | None:
    """The larger of two sizes of which either may be unknown."""
    if one is None or other is None:
        return other if one is None else one
    return max(one, other)


class History:
    """Outcomes of a results folder, as far as a plan needs them."""

    def __init__(self, results: Path, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self.problems: list[Problem] = []
        """Damaged outcomes; their jobs count as not done."""
        self.done: dict[str, Status] = {}
        self.experience = Experience()
        self.lent = Experience()
        """The times of reference results, of tracks of which the outcomes here do not know every job."""
        self._modules: dict[str, Mapping[str, str]] = {}
        self._index = OutcomeIndex(results)
        names = spool.names(results)
        present = set(names)
        for job in jobs:
            gist = self._look(job.id, job.spec_digest) if job.id in present else None
            if gist is not None:
                self.done[job.id] = gist.status
                self._modules[job.id] = gist.modules
        likes = {Likeness.of(job) for job in jobs if job.id not in self.done}
        if any(self.experience.expect(like).seconds is None for like in likes):
            mine = {job.id for job in jobs}
            for name in islice((name for name in names if name not in mine), LOOK_BACK):
                self._look(name)
        self._index.save(present)
        for track in sorted({like.track for like in likes if self.experience.expect(like).seconds is None}):
            self._borrow(track)

    def _borrow(self, track: str) -> None:
        from kdbench.store import reference

        try:
            for like, status, taken in reference.times(track):
                self.lent.add(like, status, taken)
        except UsageError as error:
            self.problems.extend(error.problems)

    def _look(self, id: str, spec_digest: str | None = None) -> Gist | None:
        """What the outcome of a job says, learned from; ``spec_digest``: of its task, for a job of the plan."""
        try:
            gist = self._index.look(id, spec_digest)
        except UsageError as error:
            self.problems.extend(error.problems)
            return None
        if gist is not None and gist.like is not None and gist.taken is not None:
            self.experience.add(gist.like, gist.status, gist.taken)
        return gist

    def expect(self, like: Likeness) -> Expectation:
        """What to expect of a job; its time is that of reference results where no outcome here says anything of it.

        Memory is of this machine alone: what jobs may take at a time depends on it.
        """
        own = self.experience.expect(like)
        return own if own.seconds is not None else replace(own, seconds=self.lent.expect(like).seconds)

    def estimate(self, slots: Mapping[Resources, int]) -> Estimate:
        """How long the jobs that are left take.

        ``slots`` says for resources how many jobs that ask for them run at a time if nothing else does.
        """
        left = [job for job in self.jobs if job.id not in self.done]
        likes = [Likeness.of(job) for job in left]
        found = {like: self.expect(like).seconds for like in set(likes)}
        known = [(job, seconds) for job, like in zip(left, likes, strict=True) if (seconds := found[like]) is not None]
        lent = sum(found[like] is not None and self.experience.expect(like).seconds is None for like in likes)
        if not known:
            return Estimate(None if left else 0.0, len(left), 0)
        packed = sum(seconds / slots[job.resources] for job, seconds in known)
        return Estimate(max(packed, *(seconds for _, seconds in known)), len(left) - len(known), lent)

    def expected(self) -> dict[str, Expectation]:
        """What to expect of every job of the plan, by id; jobs that are alike share it."""
        found: dict[Hashable, Expectation] = {}
        by_job: dict[str, Expectation] = {}
        for job in self.jobs:
            seeds = job.method, job.spec_digest, job.label, id(job.resources)  # what jobs of one entry share
            if seeds not in found:
                found[seeds] = self.expect(Likeness.of(job))
            by_job[job.id] = found[seeds]
        return by_job

    def stale(self) -> dict[str, list[str]]:
        """For every done job whose outcome was made with other code: the modules whose files differ now."""
        different: dict[int, list[str]] = {}
        """By the identity of the mapping, which outcomes made with the same code share."""
        for modules in self._modules.values():
            if id(modules) not in different:
                different[id(modules)] = sorted(n for n, then in modules.items() if module_digest(n) != then)
        return {id_: different[id(modules)] for id_, modules in self._modules.items() if different[id(modules)]}


@cache
def module_digest(name: str) -> str | None:
    """First 16 hexadecimal digits of the SHA-256 of a module's file now; None where there is none.

    The module is not imported, nor are the packages around it.
    """
    top, *rest = name.split(".")
    try:
        spec = util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return None
    if not rest:
        places = [Path(spec.origin)] if spec.origin else []
    else:
        roots = [Path(root).joinpath(*rest) for root in spec.submodule_search_locations or ()]
        places = [place for root in roots for place in (root.with_name(root.name + ".py"), root / "__init__.py")]
    for place in places:
        if place.is_file():
            return file_digest(place)[:16]
    return None
