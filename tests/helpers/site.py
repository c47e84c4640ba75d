"""Results folders for pages to be made of: texts that attack a reader, every shipped method, and many methods.

Nothing is trained: scores are drawn, equal seeds give equal folders.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kdbench.job import Outcome, Status
from kdbench.store import membership, spool
from tests.helpers.outcomes import make_job, make_outcome, make_spec, put

HOSTILE_SUITE = '<i>suite</i> & "co" \''

NAMES: dict[str, str] = {
    "script": "<script>alert('script')</script>",
    "attribute": "\"><img src=x onerror=alert('attribute')>",
    "single quote": "' onmouseover='alert(1)' x='",
    "event": "<svg/onload=alert('event')>",
    "textarea": "</textarea></title></style><script>alert('textarea')</script>",
    "comment": "<!--<script>alert('comment')//-->",
    "end of script": "</script><script>alert('end of script')</script>",
    "url": "javascript:alert('url')",
    "frame": "<iframe srcdoc=\"<script>parent.alert('frame')</script>\"></iframe>",
    "template": "{{ 7*7 }}{% raw %}${7*7}#{7*7}<%= 7*7 %>",
    "markdown": "[click](javascript:alert('markdown')) ![x](https://example.com/x.png)",
    "outside": "../../../outside",
    "encoded path": "..%2f..%2f%00%0d%0a",
    "backslashes": "..\\..\\C:\\windows\\<x>:|?*",
    "anchor": "name#part?query=1&more=2;x=%20",
    "spaced": "  two  spaces\tand a tab ",
    "sql": "'; DROP TABLE store.jobs; --",
    "expression": "datum['x'] + alert('expression')",
    "member": "toString",
    "prototype": "__proto__",
    "device": "con",
    "dots": "..",
    "index": "index",
    "upper": "KD",
    "lower": "kd",
    "accent": "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
    "accent in two": "cafe\N{COMBINING ACUTE ACCENT}",
    "emoji": "\N{MAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}",
    "right to left": "\N{HEBREW LETTER ALEF}\N{HEBREW LETTER BET} 12.5 \N{HEBREW LETTER GIMEL}",
    "override": "safe\N{RIGHT-TO-LEFT OVERRIDE}txt.exe",
    "line separator": "one\N{LINE SEPARATOR}two\N{PARAGRAPH SEPARATOR}three\nfour",
    "control": "bell\a escape\x1b[31mred\x1b[0m delete\x7f",
    "formula": '=HYPERLINK("https://example.com")',
    "long": "long" * 250,
    "long words": "many words in a name " * 30,
}
"""Names of methods, labels, metrics and parameters, by what they try. Those that run a script call ``alert``."""

METRICS: tuple[str, ...] = (
    NAMES["end of script"],
    NAMES["attribute"],
    NAMES["prototype"],
    NAMES["line separator"],
    "a.b[0]['c']\\d\"e",
    "datum.x); alert('metric'); (",
    "metric" * 60,
)
"""Names of metrics: those that break out of scripts, of attributes and of the expressions of a charting language."""

LOG = "\n".join(
    (
        "step 1 loss 0.5",
        "</pre></code></script><script>alert('log')</script>",
        "<img src=x onerror=alert('log image')>",
        "\x1b[31mred\x1b[0m \x1b]8;;https://example.com\x07link\x1b]8;;\x07 bell\a null\x00 delete\x7f",
        "progress 10%\rprogress 20%\rprogress 30%",
        "\N{RIGHT-TO-LEFT OVERRIDE}backwards\N{POP DIRECTIONAL FORMATTING} \N{FIRE}",
        "no break " + "x" * 5000,
        "the last line of the log",
    )
)
"""What a job printed, in its worst form."""

HOSTILE_TRACKS: tuple[str, ...] = ("vision", "\"><img src=x onerror=alert('track')>")
HOSTILE_TASKS: tuple[str, ...] = ("<script>alert('task')<", "toy")
HOSTILE_UNIT = "<b>%</b>"

SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="32" height="32" onload="alert(\'svg\')">'
    "<script>alert('svg script')</script><image href=\"https://example.com/x.png\"/>"
    '<circle cx="16" cy="16" r="12" fill="teal"/></svg>'
)
"""A picture that runs a script and loads from the network wherever it is not shown as a mere picture."""


def hostile(results: Path) -> list[Outcome]:
    """Outcomes whose texts attack whoever shows them: names, parameters, metrics, errors, logs, pictures.

    Two tracks, two tasks each, every name of :data:`NAMES` as a method with three seeds; of every fifth method the
    last seed failed. The methods are installed nowhere.
    """
    rng = np.random.default_rng(7)
    written = [
        outcome
        for track in HOSTILE_TRACKS
        for task in HOSTILE_TASKS
        for outcome in _hostile_board(results, f"{track}/{task}", rng)
    ]
    membership.add(results, HOSTILE_SUITE, [outcome.id for outcome in written], None)
    return written


def _hostile_board(results: Path, task: str, rng: np.random.Generator) -> Iterator[Outcome]:
    track = task.split("/", 1)[0]
    headline = {"name": METRICS[0], "direction": "max", "bounds": (0, 1), "unit": HOSTILE_UNIT}
    spec = make_spec(
        task, headline=METRICS[0], metrics=METRICS[1:], limits={NAMES["script"]: 100.0, "steps": 100.0}
    ) | {"headline": headline, "floor": NAMES["lower"], "ceiling": NAMES["script"]}
    for number, (attack, name) in enumerate(NAMES.items()):
        for seed in range(3):
            failed = number % 5 == 4 and seed == 2
            job = make_job(
                f"{track}/{name}",
                seed,
                task=task,
                params={name: name, "nested": {name: [name, None, True, 1e300]}, "plain": number},
                spec=spec,
                suite=HOSTILE_SUITE,
                label="" if attack == "long words" else name,
            )
            score = 0.3 + 0.01 * number + 0.02 * rng.standard_normal()
            outcome = make_outcome(
                job,
                score,
                status="failed" if failed else "ok",
                metrics={metric: float(rng.normal()) for metric in METRICS[1:]},
                extra={f"{name} (extra)": 1e-300, "huge": 1e300, "infinite": float("inf")},
                cost={NAMES["attribute"]: 1.0 + number, "flops": 10.0 ** (number % 12)},
            )
            _attack(outcome, name)
            folder = spool.job_folder(results, outcome.id)
            points = [{"step": step, "loss": 1 / (step + 1), **dict.fromkeys(METRICS, step / 10)} for step in range(5)]
            if not failed:
                outcome.artifacts = _pictures(folder, name)
            put(results, outcome, curve=points, log=LOG)
            yield outcome


def _attack(outcome: Outcome, name: str) -> None:
    if outcome.error is not None:
        outcome.error.type = NAMES["event"]
        outcome.error.message = f"{name}\n{NAMES['script']}\x00\ud800"
        outcome.error.traceback = LOG
    outcome.provenance |= {
        "git": {"commit": NAMES["script"], "dirty": True},
        "packages": {NAMES["attribute"]: NAMES["script"]},
        "device": NAMES["event"],
        "host": NAMES["end of script"],
    }


def _pictures(folder: Path, name: str) -> list[str]:
    """Samples that a job left in its folder; returns their paths relative to it."""
    samples = folder / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    safe = name if len(name) < 100 and not set(name) & set("/\0") else "plain"
    paths = [samples / f"{safe}.png", samples / "scripted.svg"]
    shade = np.linspace(0, 255, 24 * 24, dtype=np.uint8).reshape(24, 24)
    Image.fromarray(shade).save(paths[0], format="png")
    paths[1].write_text(SVG)
    return [str(path.relative_to(folder)) for path in paths]


SHIPPED_SUITES: tuple[str, ...] = ("vision", "llm")
"""Suites of the repository that :func:`shipped` plans."""


def shipped(results: Path, tasks: Sequence[str] | None = None, seeds: int = 5) -> list[Outcome]:
    """Outcomes of the suites that come with kdbench, as a run of them would leave them but for drawn scores.

    ``tasks``: globs or parts of names of tasks to plan; None: all. Every ninth method fails on every fourth task.
    """
    from kdbench.plan import make_plan
    from kdbench.registry import discover
    from kdbench.suite import load_suite

    registry = discover()
    root = Path(__file__).resolve().parents[2] / "suites"
    written = []
    for name in SHIPPED_SUITES:
        suite = load_suite(root / f"{name}.yaml")
        jobs = make_plan(suite, registry, results, seeds=seeds).jobs
        if tasks is not None:
            jobs = [job for job in jobs if any(part in job.task for part in tasks)]
        order = {task: number for number, task in enumerate(sorted({job.task for job in jobs}))}
        skill = {label: number for number, label in enumerate(sorted({job.label for job in jobs}))}
        written += [_drawn(results, job, order[job.task], skill[job.label]) for job in jobs]
        membership.add(results, suite.name, [job.id for job in jobs], None)
    return written


def _drawn(results: Path, job: Any, task: int, method: int) -> Outcome:
    rng = np.random.default_rng([task, method, job.seed])
    headline = job.spec["headline"]
    role = job.method.split("/", 1)[1]
    quality = {job.spec["floor"]: 0.0, job.spec["ceiling"]: 1.0}.get(role, (method * 37 % 100) / 90 - 0.05)
    common = 0.01 * np.random.default_rng([task, job.seed]).standard_normal()
    share = 0.55 + 0.3 * quality + common + 0.012 * rng.standard_normal()
    score = share if headline["direction"] == "max" else 3.2 - 2 * share
    failed = role not in (job.spec["floor"], job.spec["ceiling"]) and method % 9 == 4 and task % 4 == 1
    status: Status = ("failed", "diverged", "oom", "timeout", "over_budget")[method % 5] if failed else "ok"
    outcome = make_outcome(job, score, status=status, metrics=_official(job.spec, score, rng), cost=_cost(method, rng))
    outcome.provenance["device"] = "cpu: planted"
    log = f"training {job.label} on {job.task}\n" + "".join(
        f"step {step} loss {3 / (step + 1):.3f}\n" for step in range(40)
    )
    steps = np.linspace(0, 1000, 25).astype(int)
    points = [
        {"step": int(step), "loss": float(2.5 * np.exp(-step / 250) + 0.3 + 0.02 * rng.standard_normal()), "lr": 1e-3}
        for step in steps
    ]
    put(results, outcome, curve=points, log=log + ("RuntimeError: planted\n" if failed else ""))
    return outcome


def _official(spec: Mapping[str, Any], score: float, rng: np.random.Generator) -> dict[str, float]:
    drawn = {metric["name"]: float(abs(rng.normal(0.5, 0.1))) for metric in spec["metrics"]}
    return {**drawn, spec["headline"]["name"]: float(score)}


def _cost(method: int, rng: np.random.Generator) -> dict[str, float]:
    factor = 10 ** (method % 7 / 2)
    return {
        "steps": 1000.0,
        "train_seconds": float(2.5 * factor * (1 + 0.1 * rng.random())),
        "eval_seconds": 0.4,
        "teacher_queries": float(64_000 * (method % 4)),
        "flops": 1e11 * factor,
        "parameters": 52_000.0,
        "test_examples": 1000.0,
    }


LARGE = (226, 40, 5)
"""Methods, tasks and seeds of the largest site that limits are stated for."""


def large(
    results: Path, methods: int = 226, tasks: int = 40, seeds: int = 5, *, points: int = 10, failing: float = 0.02
) -> int:
    """Every method on every task of one track with every seed; returns the number of jobs.

    ``points`` of a curve with two metrics each; ``failing``: share of the pairs of a method and a task whose last
    seed failed, with a log. Files are written without waiting for the disk: 45,200 jobs take about half a minute.
    """
    rng = np.random.default_rng(0)
    skill = rng.normal(0, 0.05, methods)
    written: list[str] = []
    for task in range(tasks):
        name = f"vision/task-{task:02d}"
        spec = make_spec(name, headline="top1", metrics=("nll", "ece"), limits={"steps": 1000})
        level = 0.6 + 0.2 * rng.random()
        fails = rng.random(methods) < failing
        for method in range(methods):
            slug = {0: "no_kd", 1: "teacher"}.get(method, f"method_{method:03d}")
            mean = level + (-0.15 if method == 0 else 0.15 if method == 1 else skill[method])
            for seed in range(seeds):
                job = make_job(slug, seed, task=name, params={"weight": 1.0 + method}, spec=spec, suite="large")
                failed = bool(fails[method]) and seed == seeds - 1
                outcome = make_outcome(
                    job,
                    float(np.clip(mean + 0.01 * rng.standard_normal(), 0, 1)),
                    status="failed" if failed else "ok",
                    metrics={"ece": float(rng.random())},
                    cost=_cost(method, rng),
                )
                curve = [
                    {"step": 100 * step, "loss": 2 / (step + 1), "top1": mean * step / points} for step in range(points)
                ]
                _write(spool.job_folder(results, outcome.id), outcome, curve, "planted\n" * 200 if failed else "")
                written.append(outcome.id)
    membership.add(results, "large", written, None)
    return len(written)


def _write(folder: Path, outcome: Outcome, curve: Sequence[Mapping[str, float]], log: str) -> None:
    folder.mkdir(parents=True)
    if curve:
        (folder / spool.CURVE).write_text("".join(json.dumps(dict(row)) + "\n" for row in curve))
    if log:
        (folder / spool.LOG).write_text(log)
    (folder / spool.OUTCOME).write_text(outcome.model_dump_json())
