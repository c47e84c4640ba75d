"""Every method runs on every task that its card claims; tasks have the floor and the ceiling that they name.

One task per kind of family in the normal run, all of them with ``--full``.
"""

import pytest

from kdbench.registry import discover

REGISTRY = discover()
TASKS = {
    entry.name.partition("/")[2]: REGISTRY.task(entry.name, "smoke")
    for entry in REGISTRY.tasks()
    if entry.track == "vision" and "smoke" in entry.scales
}
LABELLED = {
    "classify", "conditional", "ensemble", "longtail", "multidomain", "noisy", "prune", "selfdistill", "shifted",
}  # fmt: skip
"""Families that differ in what the images are, not in what a method is given: labelled images and a teacher."""
METHODS = sorted((m for m in REGISTRY.methods.values() if m.track == "vision"), key=lambda method: method.slug)


def pairs():
    """(method, task) with the mark ``full`` for all but the first task of each kind of family that a method claims."""
    for method in METHODS:
        seen = set()
        for name, spec in TASKS.items():
            if REGISTRY.supports(method, spec):
                kind = "labelled" if spec.family in LABELLED else spec.family
                marks = [pytest.mark.full] if kind in seen else []
                seen.add(kind)
                yield pytest.param(method.slug, name, marks=marks, id=f"{method.slug}-{name}")


@pytest.mark.parametrize(("slug", "task"), list(pairs()))
def test_a_method_runs_where_its_card_says(smoke, slug, task):
    if TASKS[task].problems():
        pytest.skip(str(TASKS[task].problems()[0]))
    outcome = smoke(slug, task)
    assert outcome.status == "ok", outcome.error


@pytest.mark.parametrize("role", ["floor", "ceiling"])
@pytest.mark.parametrize("task", list(TASKS))
def test_a_task_can_run_its_floor_and_its_ceiling(task, role):
    slug = getattr(TASKS[task], role)
    if slug:
        assert REGISTRY.supports(REGISTRY.method(slug, "vision"), TASKS[task])
