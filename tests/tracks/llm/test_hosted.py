"""A hosted teacher, against a server on this machine."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing

import numpy as np
import pytest

from kdbench.errors import JobError, UsageError
from kdbench.tracks.llm.blocks.authors import Request
from kdbench.tracks.llm.blocks.guidance import Mistake, performance
from kdbench.tracks.llm.blocks.hosted import HostedAuthor, portions, prompt
from tests.helpers.endpoint import Endpoint

CLASSES = ("http", "email", "enum")


def texts(*labels: str) -> str:
    return json.dumps({"texts": [{"text": f"about {label} {i}", "label": label} for i, label in enumerate(labels)]})


@pytest.fixture
def endpoint():
    with closing(Endpoint()) as made:
        yield made


@pytest.fixture
def author(endpoint, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    spent: Counter[str] = Counter()

    def spend(unit, amount):
        spent[unit] += amount

    made = HostedAuthor(endpoint.url, "some-model", "SOME_KEY", attempts=3, pause=0.0, spend=spend)
    made.spent = spent
    return made


def test_a_request_goes_out_whole_and_its_answer_comes_back(endpoint, author):
    endpoint.answers = [texts("http", "enum", "http", "nonsense")]
    found = performance(np.array([0, 0, 2]), np.array([0, 1, 2]), 3)
    request = Request(
        CLASSES,
        (2, 0, 1),
        examples=(("an example", 1),),
        mistakes=(Mistake("a mistake", 1, 0, 0.6),),
        hard_negatives=(Mistake("a hard one", 1, 0, 0.97),),
        performance=found,
    )
    written = author.generate(request)
    assert written == [("about http 0", 0), ("about enum 1", 2), ("about http 2", 0)]
    call = endpoint.calls[0]
    assert call["path"] == "/v1/chat/completions"
    assert call["authorization"] == "Bearer secret"
    assert call["body"]["model"] == "some-model"
    said = call["body"]["messages"][1]["content"]
    for part in ("an example", "a mistake", "a hard one", "0.97", "email taken for http: 1", "http: 2", "F1 0.67"):
        assert part in said
    assert "email: 0" not in said
    assert author.spent == {"teacher_queries": 1, "prompt_tokens": 7, "generated_tokens": 5}


def test_large_requests_are_split(endpoint, author):
    author.per_call = 2
    endpoint.answers = [texts("http", "http"), texts("http", "email")]
    assert Counter(label for _, label in author.generate(Request(CLASSES, (3, 1, 0)))) == {0: 3, 1: 1}
    assert sum(sum(part) for part in portions((3, 1, 0), 2)) == 4


def test_more_than_was_asked_for_is_dropped(endpoint, author):
    endpoint.answers = [texts("http", "http", "http", "email")]
    assert author.generate(Request(CLASSES, (1, 0, 1))) == [("about http 0", 0)]


@pytest.mark.parametrize("bad", [500, 429, "no JSON", '{"texts": []}', '{"texts": [{"label": "http"}]}', '{"x": 1}'])
def test_a_bad_answer_is_asked_for_again(endpoint, author, bad):
    endpoint.answers = [bad, "```json\n" + texts("http") + "\n```"]
    assert author.generate(Request(CLASSES, (1, 0, 0))) == [("about http 0", 0)]
    assert len(endpoint.calls) == 2


def test_it_is_asked_what_its_texts_are_of(endpoint, author):
    author.per_call = 2
    endpoint.answers = [
        json.dumps({"labels": [["enum", "http", "email"], ["nonsense", "email"]]}),
        json.dumps({"labels": [["http"], ["http"]]}),  # one label too many: asked again
        json.dumps({"labels": [["http"]]}),
    ]
    assert author.probable(["a", "b", "c"], CLASSES, 2) == [(2, 0), (1,), (0,)]
    assert len(endpoint.calls) == 3
    system, said = (message["content"] for message in endpoint.calls[0]["body"]["messages"])
    assert "check the labels" in system
    assert "http, email, enum" in said
    assert '{"number": 1, "text": "b"}' in said
    assert author.spent["teacher_queries"] == 3


def test_it_gives_up_with_every_reason(endpoint, author):
    endpoint.answers = [503, "no JSON", 500]
    with pytest.raises(JobError, match=r"3 attempts: 503 .*; an answer that is not as asked for .*; 500 "):
        author.generate(Request(CLASSES, (1, 0, 0)))


def test_a_refusal_is_final(endpoint, author):
    endpoint.answers = [401, texts("http")]
    with pytest.raises(JobError, match="refused the request: 401"):
        author.generate(Request(CLASSES, (1, 0, 0)))
    assert len(endpoint.calls) == 1


def test_no_server_is_an_error_with_its_address():
    author = HostedAuthor("http://127.0.0.1:9", "m", "", attempts=1)
    with pytest.raises(JobError, match=r"http://127\.0\.0\.1:9 gave no usable answer in 1 attempts"):
        author.generate(Request(CLASSES, (1, 0, 0)))


def test_what_is_missing_is_said_before_the_first_call(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    for values, what in (
        (("", "m", ""), "base_url and model"),
        (("http://x/v1", "", ""), "base_url and model"),
        (("file:///x", "m", ""), "base_url and model"),
        (("http://x/v1", "m", "NO_SUCH_KEY"), "NO_SUCH_KEY"),
    ):
        with pytest.raises(UsageError, match=what):
            HostedAuthor(*values)


def test_the_key_is_in_no_prompt(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    author = HostedAuthor("http://x/v1", "m", "SOME_KEY")
    assert "secret" not in prompt(Request(CLASSES, (1, 0, 0))) + repr(author)
