"""What a method must keep to. Each check says what is wrong and what to change."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from kdbench.cards import Paper
from kdbench.conformance.evidence import Evidence, Ran
from kdbench.conformance.interrupting import curve
from kdbench.registry import load_method, params_class
from kdbench.schedule.verify import differences, repeatable

State = Literal["ok", "failed", "does not apply"]

CUDA_TOLERANCE = 0.1
"""How far the headline may be from that on the CPU: of its range where it has one, relative otherwise. A smoke task has
some dozens of test examples, and sums in another order turn some of them."""


class Unmet(Exception):
    """A check that fails: what was found, and what to change."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(found)
        self.advice = advice


class NotApplicable(Exception):
    """A check that says nothing about this method, with the reason."""


@dataclass(frozen=True)
class Finding:
    """What a check came to."""

    check: str
    state: State
    message: str = ""
    advice: str = ""


Check = Callable[[Evidence], None]


def examine(evidence: Evidence) -> Iterator[Finding]:
    """Every check in turn. What other checks need and is not there (the method does not train) fails once."""
    for name, check in CHECKS.items():
        yield finding(name, check, evidence)


def finding(name: str, check: Check, evidence: Evidence) -> Finding:
    """One check."""
    try:
        check(evidence)
    except Unmet as error:
        return Finding(name, "failed", str(error), error.advice)
    except NotApplicable as reason:
        return Finding(name, "does not apply", str(reason))
    return Finding(name, "ok")


# --- without running it -----------------------------------------------------------------------------------------------


def card(evidence: Evidence) -> None:
    """The card says what a reader needs."""
    method = evidence.method
    if method.path.stem != method.slug:
        raise Unmet(f"the file {method.path.name} is not named after the slug {method.slug!r}", "rename one of them")
    if not method.doc.strip():
        raise Unmet("the module has no docstring", "say in three sentences what the method does, and where it is from")
    unknown = _unknown_tasks(evidence)
    if unknown:
        raise Unmet(f"no task or family is called {', '.join(unknown)}", "list names that kdbench tasks shows")
    if not isinstance(method.card, Paper):
        return
    if not method.card.authors:
        raise Unmet("the card of the paper names no authors", 'add authors=["First Last", ...]')
    if not method.card.arxiv and not method.card.url:
        raise Unmet("the card of the paper has neither arxiv nor url", "add one, so that readers find it")
    if not method.card.claims:
        raise Unmet("the card of the paper has no claim", "add claims=[Compare(...)]: what kdbench claims checks")


def _unknown_tasks(evidence: Evidence) -> list[str]:
    entries = [entry for entry in evidence.registry.tasks() if entry.track == evidence.method.track]
    known = {"*", *(name for entry in entries for name in (entry.name, entry.name.partition("/")[2], entry.family))}
    return [name for name in evidence.method.card.tasks if name not in known]


def parameters(evidence: Evidence) -> None:
    """Parameters say what they mean and where they end, and hold at both ends."""
    model = params_class(load_method(evidence.method.path, evidence.method.module))
    for field in evidence.method.fields:
        if not field.description.strip():
            raise Unmet(f"the parameter {field.name} has no description", 'write Field(..., description="...")')
        if field.annotation in ("int", "float") and not field.bounds:
            raise Unmet(f"the parameter {field.name} has no bounds", "write Field(..., ge=..., le=...)")
        for bound in ("ge", "le"):
            value = field.bounds.get(bound)
            if value is None:
                continue
            try:
                model.model_validate({field.name: value})
            except ValidationError as error:
                if all(problem["type"] == "value_error" for problem in error.errors()):
                    continue  # a rule between several parameters: the others have their defaults here
                raise Unmet(
                    f"{field.name} = {value}, its own bound, is refused: {error.errors()[0]['msg']}",
                    "let bounds and type agree",
                ) from error


# --- one run ----------------------------------------------------------------------------------------------------------


def trains(evidence: Evidence) -> None:
    """It trains and evaluates on the smallest task of its track, within the budget."""
    outcome = evidence.first.outcome
    if outcome.status != "ok":
        error = outcome.error
        where = "" if error is None or not error.traceback else f"\n{error.traceback.rstrip()}"
        reason = "" if error is None else f": {error.type}: {error.message}{where}"
        raise Unmet(
            f"it ended as {outcome.status} on {evidence.spec.name}@{evidence.spec.scale}{reason}",
            _advice(outcome.status),
        )
    for unit, limit in evidence.spec.limits.items():
        if outcome.cost.get(unit, 0) > limit:
            raise Unmet(f"it spent {outcome.cost[unit]:g} {unit} of {limit:g}", "ask task.budget what is left")
    values = {**outcome.metrics, **outcome.extra}
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise Unmet(f"{', '.join(wrong)} are not finite", "return numbers from evaluate")
    low, high = evidence.spec.headline.bounds
    headline = outcome.headline
    if headline is None or (low is not None and headline < low) or (high is not None and headline > high):
        raise Unmet(f"the headline {headline} is not within {low} and {high}", "leave the official metrics as they are")


def _advice(status: str) -> str:
    return {
        "diverged": "lower the learning rate or the weight of the loss; losses are computed in float32",
        "over_budget": "ask task.budget.steps() how many steps there are, and charge auxiliary networks to aux_steps",
        "oom": "free what is not needed, or compute the loss in chunks",
    }.get(status, "the last line of the traceback that is in the method's own file says where")


def _ok(ran: Ran, what: str, advice: str) -> None:
    """Raise unless the run ended well; ``NotApplicable`` is for those who need :func:`trains` to hold."""
    error = ran.outcome.error
    if ran.outcome.status != "ok":
        raise Unmet(f"{what} ended as {ran.outcome.status}: {error.message if error else ''}", advice)


def _first(evidence: Evidence) -> Ran:
    if evidence.first.outcome.status != "ok":
        raise NotApplicable("it does not train")
    return evidence.first


def _watched(evidence: Evidence) -> Ran:
    """The watched run, which need not have ended well."""
    ran = evidence.watched
    if evidence.seen.task is None:
        raise NotApplicable("its task cannot be made")
    return ran


def _steps(evidence: Evidence) -> float:
    """Optimizer steps of the first run; raises where the method trains nothing."""
    steps = _first(evidence).outcome.cost.get("steps", 0.0)
    if not steps:
        raise NotApplicable("it trains no network")
    return steps


def costs(evidence: Evidence) -> None:
    """What it spends is metered."""
    steps = _steps(evidence)
    cost = evidence.first.outcome.cost
    for name in ("flops", "samples"):
        if cost.get(name, 0.0) <= 0:
            raise Unmet(f"{steps:g} steps were made, but no {name} were metered", "train with task.fit, or meter them")
    if cost["samples"] < steps:
        raise Unmet(
            f"{steps:g} steps saw {cost['samples']:g} samples", "meter the samples of every batch, not of the first one"
        )
    negative = [name for name, value in cost.items() if value < 0 or not math.isfinite(value)]
    if negative:
        raise Unmet(f"the meters {', '.join(negative)} are negative or not finite", "spend positive amounts")
    if not curve(evidence.first.folder):
        raise Unmet("nothing was logged", "train with task.fit, or call task.log(step, loss=...)")


def changes_the_student(evidence: Evidence) -> None:
    """Training changes the student."""
    _steps(evidence)
    _watched(evidence)
    if evidence.seen.student is None:
        raise NotApplicable("it returns another network than the student of the task")
    if not evidence.seen.student:
        raise Unmet("the student came back as it was made", "return the network that was trained")


def leaves_the_teacher(evidence: Evidence) -> None:
    """The shared teacher keeps its weights, gets no gradient, and what is cached of it stays whole."""
    _watched(evidence)
    advice = "compute teacher outputs under torch.no_grad(); task.teacher(trainable=True) is a copy of your own"
    if evidence.seen.teacher:
        raise Unmet(f"train changed the shared teacher: {', '.join(evidence.seen.teacher[:4])}", advice)
    damaged = evidence.damaged_cache()
    if damaged:
        raise Unmet(f"the cache was damaged: {damaged[0]}", "clone cached tensors before you change them")


def leaves_test_data(evidence: Evidence) -> None:
    """Nothing of the test data is asked for while it trains."""
    _watched(evidence)
    if evidence.seen.test_data:
        raise Unmet(f"train asks for test data at {evidence.seen.test_data[0]}", "use task.validate(model) in train")


def leaves_no_state(evidence: Evidence) -> None:
    """Nothing global is left behind: settings, threads, files."""
    _watched(evidence)
    seen = evidence.seen
    if seen.state:
        raise Unmet(f"left behind: {seen.state[0]}", "put it back when the hook ends, also after an error")
    if seen.files:
        raise Unmet(f"it wrote {seen.files[0]}", "write into task.folder: task.artifact(name) is a path for the report")
    if seen.temporary:
        raise Unmet(f"it left the temporary file {seen.temporary[0]}", "use tempfile with a with statement")


def saves(evidence: Evidence) -> None:
    """What it returns survives being saved and loaded."""
    _first(evidence)
    ran = _watched(evidence)
    _ok(ran, "a run with the seed 1", "it ran with the seed 0: what differs?")
    loaded = evidence.loaded_scores()
    for name, value in _metrics(evidence, ran).items():
        if loaded[name] != value:
            raise Unmet(
                f"{name} is {value:g} before and {loaded[name]:g} after saving and loading",
                "keep everything that the forward pass needs in parameters and buffers",
            )


def _metrics(evidence: Evidence, ran: Ran) -> dict[str, float]:
    """Official metrics but for those that a clock has measured."""
    return repeatable(ran.outcome, evidence.spec)["metrics"]


# --- several runs -----------------------------------------------------------------------------------------------------


def deterministic(evidence: Evidence) -> None:
    """The seed decides: the same metrics, meters and curve again, also where the run is interrupted and goes on."""
    first = _first(evidence)
    again, _ = evidence.again
    _ok(again, "the second run of the same job", "an interrupted job must be able to go on: see deterministic state")
    advice = "draw from task.generator(purpose), task.rng(purpose) or the global generators, never from clocks or sets"
    once, twice = (repeatable(ran.outcome, evidence.spec) for ran in (first, again))
    found = list(differences(once, twice))
    if found:
        kind = found[0].kind
        shown = ", ".join(f"{one.name} {one.was} and {one.now}" for one in found[:3] if one.kind == kind)
        raise Unmet(f"the same seed gives other {kind}: {shown}", advice)
    if curve(first.folder) != curve(again.folder):
        raise Unmet("the same seed gives another curve", advice)


def resumes(evidence: Evidence) -> None:
    """It goes on from its checkpoint, rather than starting anew."""
    _steps(evidence)
    _watched(evidence)
    if not evidence.seen.fits:
        raise NotApplicable("it trains in a loop of its own: an interrupted job starts anew")
    again, stopped_after = evidence.again
    if not stopped_after:
        raise Unmet(
            "it writes no checkpoint: an interrupted job starts anew",
            "declare what the loss or on_step change from step to step: task.fit(..., state=[...]); the log names it",
        )
    if not again.outcome.provenance.get("resumed"):
        raise Unmet("its checkpoint did not fit when it went on", "make networks and generators in a fixed order")


def seeds_differ(evidence: Evidence) -> None:
    """Another seed gives another result."""
    _steps(evidence)
    other = _watched(evidence)
    _ok(other, "a run with the seed 1", "it ran with the seed 0: what differs?")
    first = evidence.first
    metrics = _metrics(evidence, first) == _metrics(evidence, other)
    same = metrics and curve(first.folder) == curve(other.folder)
    if same and _files_of(first.folder) == _files_of(other.folder):
        raise Unmet("the seeds 0 and 1 give the very same result", "no seed of your own: the task's are set already")


def _files_of(folder: Path) -> dict[str, bytes]:
    model = folder / "model"
    return {str(path.relative_to(model)): path.read_bytes() for path in sorted(model.rglob("*")) if path.is_file()}


def batch_of_one(evidence: Evidence) -> None:
    """It survives batches of one sample, such as the last of an epoch."""
    _steps(evidence)
    advice = "statistics over a batch need a case for one sample (no std, no pairs); batch normalisation too"
    _ok(evidence.single, "a run with batches of one sample", advice)


def odd_last_batch(evidence: Evidence) -> None:
    """It survives a last batch that is smaller than the others."""
    steps = _steps(evidence)
    size = evidence.spec.recipe.batch_size * evidence.spec.recipe.accumulate
    if evidence.first.outcome.cost.get("samples", 0.0) % size == 0:
        raise NotApplicable(f"no epoch ended within its {steps:g} steps, or its batches are its own")


def cuda(evidence: Evidence) -> None:
    """It gives the same result on a GPU, within a tolerance."""
    first, other = _first(evidence), evidence.on_cuda
    if other is None:
        raise NotApplicable("there is no GPU here")
    _ok(other, "a run on the GPU", "make tensors on task.device, and random numbers with task.generator on the CPU")
    here, there = first.outcome.headline, other.outcome.headline
    assert here is not None
    assert there is not None
    low, high = evidence.spec.headline.bounds
    scale = high - low if low is not None and high is not None else max(abs(here), 1e-12)
    if abs(here - there) > CUDA_TOLERANCE * scale:
        raise Unmet(
            f"{evidence.spec.headline.name} is {here:g} on the CPU and {there:g} on the GPU",
            "compute losses in float32, and draw random numbers on the CPU",
        )


CHECKS: dict[str, Check] = {
    "card": card,
    "parameters": parameters,
    "trains": trains,
    "costs": costs,
    "deterministic": deterministic,
    "resumes": resumes,
    "seeds differ": seeds_differ,
    "student changes": changes_the_student,
    "teacher untouched": leaves_the_teacher,
    "test data untouched": leaves_test_data,
    "no state left": leaves_no_state,
    "save and load": saves,
    "batch of one": batch_of_one,
    "odd last batch": odd_last_batch,
    "cuda": cuda,
}
"""By name, in the order in which they are made."""
