"""Analyses of many distillation pipelines: what each slot explains, and what a new task should get (AutoDistiller).

He et al., SustaiNLP 2021. A pipeline is a point of :data:`SPACE`. Jobs of the method ``distiller``
leave lists of pipelines that they trained, with their scores on the validation data; :func:`study` reads them from a
folder of results, and pages of results have it as a section. Light to import.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import UsageError
from kdbench.spec import digest

if TYPE_CHECKING:
    from kdbench.params import Params

METHOD = "llm/distiller"
ARTIFACT = "pipelines.json"
Point = Mapping[str, str | float]

SPACE: dict[str, tuple[str | float, ...]] = {
    "augment": ("none", "tokens", "order", "mixup"),
    "prediction": ("ce", "mse"),
    "intermediate": ("none", "mse", "l2_mse", "cosine", "infonce", "mi-0.1", "mi-0.5", "mi-0.9"),
    "layers": ("last", "uniform", "transport"),
    "hard": (0.0, 0.5),
}
"""Levels of each slot that are searched."""
SIZES = tuple(len(levels) for levels in SPACE.values())
FEATURES = ("log_classes", "log_rows", "tokens", "teacher", "log_capacity")
"""What a recommendation knows of a task: log of classes and training rows, mean tokens of a row, the teacher's score on
the validation data, log of teacher's over student's parameters."""


def updates(point: Point) -> dict[str, str | float]:
    """Parameters of the method ``distiller`` for a point of the space.

    >>> updates({"intermediate": "mi-0.5", "hard": 0.0})
    {'intermediate': 'mi', 'hard': 0.0, 'alpha': 0.5}
    """
    kind, _, alpha = str(point["intermediate"]).partition("-")
    return {**point, "intermediate": kind, **({"alpha": float(alpha)} if alpha else {})}


def point_of(params: Params) -> dict[str, str | float]:
    """The pipeline of the method's parameters, in the words of the space (it may lie outside of it)."""
    point = {slot: getattr(params, slot) for slot in SPACE}
    if point["intermediate"] == "mi":
        point["intermediate"] = f"mi-{params.alpha}"  # type: ignore[attr-defined]  # a field of this method alone
    return point


def features(task: Any, ceiling: float) -> dict[str, float]:
    """:data:`FEATURES` of a task with a teacher that scores ``ceiling`` on the validation data."""
    from kdbench.task import count_parameters

    sequences = task.split("train").sequences
    sizes = [count_parameters(net) for net in (task.teacher(), task.student())]
    return {
        "log_classes": math.log(task.num_classes),
        "log_rows": math.log(len(sequences)),
        "tokens": float(sequences.lengths.float().mean()),
        "teacher": ceiling,
        "log_capacity": math.log(sizes[0] / sizes[1]),
    }


def numbered(points: Sequence[Point]) -> Any:
    """Numbers of the levels of points of the space; (N, F) int64."""
    import numpy as np

    rows = [[SPACE[slot].index(point[slot]) for slot in SPACE] for point in points]
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(SPACE))


def importance(points: Sequence[Point], scores: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Share of the variance of scores (N,) that each slot and pair of slots explains; see ``training.importance``."""
    import numpy as np

    from kdbench.training.importance import fanova

    return fanova(numbered(points), np.asarray(scores, dtype=float), tuple(SPACE), SIZES, seed=seed)


def collect(results: Path) -> list[dict[str, Any]]:
    """Every pipeline of the space that finished jobs trained: ``task``, ``spec``, ``seed``, ``features``, ``point``,
    ``share``, ``score``, ``ratio``. Those with levels that the space lacks are left out. Tasks of one name that differ,
    in scale or by what a suite overrides, have the start of the digest of their ``spec`` in their names."""
    from kdbench.store.spool import iter_folders, read_outcome

    names: dict[str, dict[str, None]] = {}
    rows = []
    for folder in iter_folders(results):
        path = folder / "artifacts" / ARTIFACT
        outcome = read_outcome(folder) if path.exists() else None
        if outcome is None or outcome.job.method != METHOD or outcome.status != "ok":
            continue
        record = json.loads(path.read_text())
        for trained in record["trained"]:
            if all(trained["point"][slot] in SPACE[slot] for slot in SPACE):
                names.setdefault(outcome.job.task, {})[digest(outcome.job.spec)] = None
                found = {"task": outcome.job.task, "spec": digest(outcome.job.spec), "seed": outcome.job.seed}
                rows.append({**found, **record["task"], **trained})
    for row in rows:
        if len(names[row["task"]]) > 1:
            row["task"] = f"{row['task']} {row['spec'][:6]}"
    return rows


def alike(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the share of the task's steps that the most were trained for: only these are compared."""
    shares = Counter(round(row["share"], 3) for row in rows)
    common = max(shares, key=lambda share: (shares[share], share), default=0.0)
    return [row for row in rows if round(row["share"], 3) == common]


def study(results: str | Path) -> dict[str, Any]:
    """Importance of the slots by task, and leave-one-task-out recommendations, from a folder of results.

    ``importance``: task to shares (see :func:`importance`). ``recommendation``: task to what
    :func:`kdbench.training.importance.leave_one_task_out` gives, ``chosen`` as a point. ``share`` is the share of the
    task's steps that the compared pipelines had. Raises ``UsageError`` where there are pipelines of fewer than two
    tasks.
    """
    import numpy as np

    from kdbench.training.importance import leave_one_task_out

    rows = alike(collect(Path(results)))
    tasks = sorted({row["task"] for row in rows})
    if len(tasks) < 2:
        raise UsageError(
            f"pipelines of {len(tasks)} task(s), but two are needed to recommend for one from another; "
            "run distiller with search on more tasks",
            place=str(results),
        )
    shares = {}
    for task in tasks:
        own = [row for row in rows if row["task"] == task]
        shares[task] = importance([row["point"] for row in own], [row["score"] for row in own])
    features = {row["task"]: [row["features"][name] for name in FEATURES] for row in rows}
    ratios = np.array([row["ratio"] for row in rows], dtype=float)
    points = [row["point"] for row in rows]
    recommended = leave_one_task_out([row["task"] for row in rows], features, numbered(points), ratios, SIZES)
    return {
        "share": rows[0]["share"],
        "pipelines": len(rows),
        "importance": shares,
        "recommendation": {task: {**each, "chosen": points[int(each["chosen"])]} for task, each in recommended.items()},
    }


def sections(results: Path) -> Mapping[str, str]:
    """The study as a section of a page, where the folder has pipelines of several tasks."""
    if len({row["task"] for row in collect(results)}) < 2:
        return {}
    found = study(results)
    intro = (
        f"{found['pipelines']} trained pipelines, each for {found['share']:.0%} of the task's steps, scored on the "
        "validation data. Shares of the score's variance by slot (functional ANOVA), and the pipeline that a "
        "regression on all other tasks recommends: its ratio of student to teacher, and its distance from the best "
        "that was tried beside that of a random pick."
    )
    lines = [
        intro,
        "",
        "| task | " + " | ".join(SPACE) + " | recommended | ratio | regret | random |",
        "|" + "---|" * (len(SPACE) + 5),
    ]
    for task, each in found["recommendation"].items():
        shares = " | ".join(f"{found['importance'][task][slot]:.2f}" for slot in SPACE)
        chosen = ", ".join(str(level) for level in each["chosen"].values())
        regrets = f"{each['regret']:.3f} | {each['random_regret']:.3f}"
        lines.append(f"| {task} | {shares} | {chosen} | {each['recommended']:.3f} | {regrets} |")
    return {"Distillation pipelines": "\n".join(lines)}
