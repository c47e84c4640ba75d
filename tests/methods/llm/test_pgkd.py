"""PGKD: the loop, what the teacher is told, what is let through, and whole jobs."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kdbench.tracks.llm.blocks.authors import Request
from kdbench.tracks.llm.blocks.guidance import Guard
from kdbench.tracks.llm.task import LLMTask
from kdbench_methods.llm import pgkd
from kdbench_methods.llm.pgkd import PgkdParams, admitted, request_of, summary, train
from tests.helpers.endpoint import Endpoint

SMALL = {"per_round": 8, "rounds": 2, "zero_shot": 4}


@pytest.fixture
def endpoint():
    with closing(Endpoint()) as made:
        yield made


@pytest.fixture
def task(registry, tmp_path):
    spec = registry.task("llm/classify-seeds", "smoke")
    return LLMTask(spec, seed=0, method="llm/pgkd", folder=tmp_path)


class Scripted:
    """A teacher that writes what a test wants, and keeps the requests."""

    def __init__(self, write):
        self.write, self.requests = write, []

    def generate(self, request):
        self.requests.append(request)
        return self.write(request)

    def probable(self, texts, classes, top):
        return [(0,)] * len(texts)


def rounds_of(task) -> dict:
    return json.loads((task.folder / "artifacts" / "rounds.json").read_text())


# --- what the teacher is told -----------------------------------------------------------------------------------------


def request(task, **params) -> Request:
    data = [(row.text, row.label) for row in task.split("train").rows]
    return request_of(task, PgkdParams(per_round=40, **params), task.student(), data, task.rng("shown"))


def test_feedback_changes_the_quotas_and_sends_hard_negatives(task):
    guided = request(task, shown=3)
    assert sum(guided.quotas) == 40
    assert len(set(guided.quotas)) > 1
    weak, strong = (sorted(range(4), key=lambda c: guided.performance.report[c].f1)[i] for i in (0, -1))
    assert guided.quotas[weak] > guided.quotas[strong]
    assert len(guided.hard_negatives) == len(guided.mistakes) == 3
    assert min(m.confidence for m in guided.hard_negatives) >= max(m.confidence for m in guided.mistakes)
    for mistake in (*guided.hard_negatives, *guided.mistakes):
        assert mistake.predicted != mistake.label


def test_each_part_of_the_feedback_can_be_left_out(task):
    assert request(task, report=False).quotas == (10, 10, 10, 10)
    assert request(task, report=False).hard_negatives
    assert not request(task, hard=False).hard_negatives
    assert len(set(request(task, hard=False).quotas)) > 1
    even = request(task, feedback="uniform")
    assert even.quotas == (10, 10, 10, 10)
    assert even.performance is None
    assert not even.hard_negatives + even.mistakes
    assert sum(request(task, feedback="one-shot", rounds=3).quotas) == 120


def test_mistakes_come_from_where_they_may_be_looked_for(task):
    known = {name: {row.text for row in task.split(name).rows} for name in ("train", "val")}
    assert {m.text for m in request(task, mined="train", shown=99).hard_negatives} <= known["train"]
    assert {m.text for m in request(task, shown=99).hard_negatives} & known["val"]


# --- what is let through ----------------------------------------------------------------------------------------------


def test_the_verifier_and_the_guard_let_little_through(task):
    guard = Guard()
    guard.add((row.text for row in task.split("val").rows), protected=True)
    text = task._data.split("pool").rows[0].text
    logits = task.teacher_logits(pgkd.encoded(task, [(text, 0)]).batch(torch.tensor([0])))
    right, wrong = int(logits.argmax()), int(logits.argmin())
    leak = task.split("val").rows[0].text
    written = [(text, wrong), (text, right), (text, right), (leak, 0), (leak, 1), (leak, 2), (leak, 3)]
    classifier = {"verifier": "classifier", "verify_top": 1}
    kept, refused = admitted(task, PgkdParams(**classifier), guard, None, written)
    assert kept == [(text, right)]
    assert refused == 4
    assert (guard.leaks, guard.repeats) == (1, 1)
    assert admitted(task, PgkdParams(verifier="none"), Guard(), None, [(text, wrong), ("", 0)]) == ([(text, wrong)], 0)
    everything = [(text, label) for label in range(4)]
    assert admitted(task, PgkdParams(**classifier | {"verify_top": 3}), Guard(), None, everything)[1] == 1


def test_the_teacher_that_wrote_them_checks_its_texts(task):
    written = [(f"{word} text of a class", label) for word in ("one", "another") for label in range(4)]
    kept, refused = admitted(task, PgkdParams(), Guard(), Scripted(None), written)
    assert {label for _, label in kept} == {0}
    assert refused == 6


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_validation_texts_are_never_trained_on(task, monkeypatch):
    leaks = [(row.text, row.label) for row in task.split("val").rows]
    teacher = Scripted(lambda request: leaks)
    monkeypatch.setattr(pgkd, "author_of", lambda task, params: teacher)
    train(task, PgkdParams(rounds=2, verifier="none", patience=9))
    record = rounds_of(task)
    assert record["synthetic"] == []
    assert record["rounds"][1]["leaks"] == 2 * len(leaks)
    assert [row["texts"] for row in record["rounds"]] == [8, 8, 8]


def test_it_stops_when_nothing_improves_and_returns_the_best(task, monkeypatch):
    scores = iter([0.2, 0.5, 0.4, 0.5, 0.6])
    states = []

    def validate(model):
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"macro_f1": next(scores), "nll": 1.0}

    task.validate = validate
    monkeypatch.setattr(pgkd, "author_of", lambda task, params: Scripted(lambda request: []))
    student = train(task, PgkdParams(rounds=6, patience=2))
    record = rounds_of(task)
    assert [len(record["rounds"]), record["best"]] == [4, 1]
    assert all(bool((value == states[1][name]).all()) for name, value in student.state_dict().items())
    assert task.budget.spent["steps"] == 4 * (8 // 7)


def test_what_is_added_is_trained_on_from_the_next_round(task, monkeypatch):
    words = iter(range(10**6))
    teacher = Scripted(lambda request: [(f"text number {next(words)} is new", c) for c in (0, 1)])
    monkeypatch.setattr(pgkd, "author_of", lambda task, params: teacher)
    train(task, PgkdParams(rounds=2, verifier="none", patience=9))
    record = rounds_of(task)
    assert [row["texts"] for row in record["rounds"]] == [8, 10, 12]
    assert len(teacher.requests) == 2
    assert {label for _, label in record["synthetic"]} == {0, 1}


def test_the_summary_says_how_gains_decline():
    def row(score, queries, **rest):
        return {"validation": {"macro_f1": score}, "queries": queries, **rest}

    counts = {"written": 100, "refused": 10, "added": 80, "leaks": 1, "repeats": 9}
    rounds = [row(0.1, 0, **counts), row(0.4, 100, **counts), row(0.5, 200, leaks=3, repeats=12, written=0)]
    found = summary(rounds, SimpleNamespace(rounds=6))
    assert found["gain_decline"] == pytest.approx(0.3 - 0.1)
    assert found["stopped_early"]
    assert (found["texts_written"], found["texts_added"], found["texts_leaked"]) == (200, 160, 3)


# --- whole jobs -------------------------------------------------------------------------------------------------------


def test_jobs_of_all_kinds_of_feedback_measure_the_same(run):
    found = {
        kind: run("pgkd", "classify-seeds", feedback=kind, patience=9, **SMALL).outcome
        for kind in ("guided", "one-shot", "seeds")
    }
    queries = {kind: outcome.cost.get("teacher_queries", 0) for kind, outcome in found.items()}
    assert queries["guided"] == queries["one-shot"] == 4 * 8  # half of them by the verifier
    assert queries["seeds"] == 0
    for kind, outcome in found.items():
        extra = outcome.extra
        assert extra["texts_written"] == (0 if kind == "seeds" else 16)
        assert extra["texts_refused"] + extra["texts_added"] <= 16
        assert 0 <= extra["test_overlap"] <= 1
        assert 0 <= extra["tail_f1"] <= 1
        assert extra["teacher_cost_ratio"] > 1
        assert ("author_macro_f1" in extra) == (kind != "seeds")


def test_a_hosted_teacher_writes_in_place_of_the_local_one(run, endpoint, tmp_path):
    def answer(body):
        said = body["messages"][1]["content"].split("Write this many new texts of each class:\n")[1]
        wanted = [line.rsplit(": ", 1) for line in said.splitlines()]
        rows = [
            {"text": f"{name} {len(endpoint.calls)} {i} words", "label": name}
            for name, n in wanted
            for i in range(int(n))
        ]
        return json.dumps({"texts": rows})

    endpoint.answer = answer
    where = {"author": "hosted", "base_url": endpoint.url, "model": "some-model", "key_env": ""}
    outcome = run("pgkd", "classify-seeds", patience=9, verifier="none", **where, **SMALL).outcome
    assert len(endpoint.calls) == 2
    assert outcome.cost["teacher_queries"] == 2
    assert outcome.cost["generated_tokens"] == 10
    assert outcome.extra["texts_written"] == 16
    record = json.loads(next(Path(tmp_path).rglob("rounds.json")).read_text())
    assert "hard_negatives" in record["rounds"][0]["request"]
    assert "F1" in endpoint.calls[0]["body"]["messages"][1]["content"]
