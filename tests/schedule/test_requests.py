"""Requests to a run: none is lost, none is seen twice, a look costs nothing."""

from __future__ import annotations

import os
import threading

import pytest

from kdbench.schedule.requests import Requests, post
from kdbench.store import runs

RUN = "20260102T030405-abcdef"


@pytest.fixture
def results(tmp_path):
    runs.run_folder(tmp_path, RUN).mkdir(parents=True)
    return tmp_path


def test_each_request_is_seen_once_and_in_order(results):
    requests = Requests(results, RUN)
    assert requests.new() == []
    post(results, RUN, "aa")
    post(results, RUN, None)
    assert requests.new() == ["aa", None]
    assert requests.new() == []
    post(results, RUN, "aa")
    assert requests.new() == ["aa"], "asked again"


def test_a_line_that_is_being_written_waits_until_it_is_whole(results):
    requests = Requests(results, RUN)
    path = runs.run_folder(results, RUN) / "requests"
    path.write_bytes(b"aa\nb")
    assert requests.new() == ["aa"]
    assert requests.new() == []
    path.write_bytes(b"aa\nbb\n")
    assert requests.new() == ["bb"]


def test_requests_of_many_terminals_do_not_mix(results):
    names = [f"{number:016x}" for number in range(200)]
    threads = [
        threading.Thread(target=lambda part=names[start::4]: [post(results, RUN, name) for name in part])
        for start in range(4)
    ]
    seen, requests = [], Requests(results, RUN)
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen += requests.new()
    seen += requests.new()
    assert sorted(seen) == names


def test_a_look_is_one_stat(results, monkeypatch):
    requests = Requests(results, RUN)
    post(results, RUN, "aa")
    requests.new()
    monkeypatch.setattr("pathlib.Path.open", lambda *_: pytest.fail("nothing is new"))
    calls = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda *given, **more: calls.append(given) or stat(*given, **more))
    assert requests.new() == []
    assert len(calls) == 1


@pytest.mark.parametrize("id", ["", "*", "a\nb", "../x", "a b"])
def test_what_is_no_id_is_refused(results, id):
    with pytest.raises(ValueError, match="not the id of a job"):
        post(results, RUN, id)


def test_a_run_that_does_not_exist(tmp_path):
    assert Requests(tmp_path, RUN).new() == []
    with pytest.raises(FileNotFoundError):
        post(tmp_path, RUN, None)
    with pytest.raises(ValueError, match="not the id of a run"):
        post(tmp_path, "../x", None)
