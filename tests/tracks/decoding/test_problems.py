"""Problems have the answers that they say, and splits that do not overlap."""

from __future__ import annotations

import re

import numpy as np
import pytest

from kdbench.errors import JobError
from kdbench.tracks.decoding.data.arith import FACTORS, GAINS, LOSSES, make_arith
from kdbench.tracks.decoding.data.listops import make_listops
from kdbench.tracks.decoding.data.problems import Problem, answer_in, generate, split_of
from kdbench.tracks.decoding.data.specs import ArithData, ListOpsData


def test_every_line_of_a_rationale_is_true_and_leads_to_the_next():
    data = ArithData(steps=(1, 4), largest=60)
    for problem in make_arith(data, "train", 300):
        *lines, final = problem.response.splitlines()
        assert problem.level == f"{len(lines)} steps"
        value = int(re.search(r"has (\d+)", problem.prompt)[1])
        for line in lines:
            left, right = line.split("=")
            first, operation, second = re.fullmatch(r"(\d+)([-+*])(\d+)", left).groups()
            assert int(first) == value
            value = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[operation](int(first), int(second))
            assert value == int(right)
            assert 1 <= value <= 60
        assert final == f"The final answer is: {value}"
        assert problem.check(problem.response)
        assert not problem.check(problem.response + "1")


def test_what_a_problem_says_is_what_its_rationale_does():
    signs = dict.fromkeys(GAINS, "+") | dict.fromkeys(LOSSES, "-")
    times = {word: f"*{factor}" for factor, word in FACTORS.items()}
    for problem in make_arith(ArithData(), "val", 100):
        said = re.findall(r"(\w+) (\d+)\.|(doubles|triples)", problem.prompt)
        wanted = [f"{signs[verb]}{number}" if verb else times[factor] for verb, number, factor in said]
        assert [re.sub(r"^\d+|=.*", "", line) for line in problem.response.splitlines()[:-1]] == wanted


def test_lists_are_what_the_operation_makes_of_them():
    for problem in make_listops(ListOpsData(), "train", 300):
        head, shown = problem.prompt.strip().split(": ")
        numbers, result = ([int(n) for n in text.strip("[]").split()] for text in (shown, problem.response))
        words = head.split()
        if words[0] == "insert":
            numbers.insert(int(words[3]), int(words[1]))
        elif words[0] == "remove":
            del numbers[int(words[2])]
        elif words[0] == "reverse":
            numbers = numbers[::-1]
        elif words[0] == "sort":
            numbers = sorted(numbers)
        assert result == numbers
        assert problem.level == words[0]
        assert problem.check(problem.response)


@pytest.mark.parametrize(("make", "data"), [(make_arith, ArithData()), (make_listops, ListOpsData())])
def test_splits_share_nothing_and_are_the_same_again(make, data):
    splits = {name: make(data, name, 100) for name in ("train", "val", "test")}
    for name, problems in splits.items():
        assert make(data, name, 100) == problems
        assert make(data, name, 40) == problems[:40]
        assert {split_of(problem.prompt) for problem in problems} == {name}
    assert len({problem.prompt for problem in splits["test"]}) == 100
    assert make(data.model_copy(update={"seed": 1}), "test", 100) != splits["test"]


def test_too_few_different_problems_are_said():
    def only(rng: np.random.Generator) -> Problem:
        return Problem(f"{rng.integers(4)}\n", "1", "1", "one")

    with pytest.raises(JobError, match=r"only \d+ different test problems"):
        generate(only, "test", 50, seed=0)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("3+4=7\nThe final answer is: 7", "7"),
        ("The final answer is: -12\n", "-12"),
        ("The final answer is: ", None),
        ("[1 2 3]", "[1 2 3]"),
        ("\n", None),
    ],
)
def test_the_answer_of_a_response(response, answer):
    assert answer_in(response) == answer


@pytest.mark.parametrize(
    ("make", "fields", "said"),
    [
        (ArithData, {"steps": (3, 2)}, "the fewest first"),
        (ArithData, {"steps": (1, 5)}, "1 to 4"),
        (ListOpsData, {"items": (1, 4)}, "2 to 16"),
    ],
)
def test_impossible_problems_are_refused(make, fields, said):
    with pytest.raises(ValueError, match=said):
        make(**fields)
