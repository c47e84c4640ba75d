"""Problems of each kind: they fit, splits are apart, and a program tells right from wrong."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdbench.errors import JobError
from kdbench.tracks.decoding.data.problems import Problem
from kdbench.tracks.dllm.data import vocabulary
from kdbench.tracks.dllm.data.specs import ArithData, ListsData, SquaresData
from kdbench.tracks.dllm.kinds.arith import worked
from kdbench.tracks.dllm.kinds.lists import apply, results
from kdbench.tracks.dllm.kinds.squares import is_square, solutions, squares

OPERATIONS = [
    *("copy", "reverse", "sort", "replace_index", "insert_index", "remove_index"),
    *("shuffle", "replace_random", "insert_random", "remove_random"),
]


def test_the_vocabulary_has_48_different_symbols():
    assert vocabulary.SIZE == len(set(vocabulary.ALPHABET)) == 48
    assert vocabulary.ALPHABET[vocabulary.ITEMS :][:10] == "0123456789"
    assert vocabulary.ALPHABET[vocabulary.MASK] == "_"
    with pytest.raises(ValueError, match="symbols that are not in the vocabulary: Z"):
        vocabulary.encode("aZ", 4)
    with pytest.raises(ValueError, match="more than 2"):
        vocabulary.encode("abc", 2)


@pytest.mark.parametrize("name", ["fixed", "edits", "random", "squares", "arith", "add"])
def test_every_reference_is_right_and_fits(make, name):
    task = make(name, phase="evaluate")
    for part in ("train", "val", "test"):
        split = task.split(part)
        assert task.correct(part, split.answer).all()
        assert split.answer.shape == (len(split), task.length)
        assert split.prompts.ids.shape == (len(split), task.spec.data.prompt)
        assert (split.prompts.ids[:, -1] == vocabulary.SEP).all()
        assert torch.equal(split.prompts.present, split.prompts.ids != vocabulary.EOS)
        assert not (split.answer == task.mask).any()
    prompts = [{problem.prompt for problem in task.split(part).problems} for part in ("train", "val", "test")]
    assert not prompts[0] & prompts[1]
    assert not prompts[1] & prompts[2]
    assert not prompts[0] & prompts[2]


@pytest.mark.parametrize("name", ["fixed", "random", "squares", "arith"])
def test_a_changed_token_is_wrong_where_there_is_one_solution(make, name):
    task = make(name)
    split = task.split("train")
    other = split.answer.clone()
    filled = (other != vocabulary.EOS).sum(1) - 1
    rows = torch.arange(len(other))
    last = filled - 1 if name == "arith" else filled  # the last digit of the result stands before a semicolon
    other[rows, last] = torch.where(
        other[rows, last] == vocabulary.ITEMS + 3, vocabulary.ITEMS + 4, vocabulary.ITEMS + 3
    )
    single = ~task.kind.coupled(split)
    assert not task.correct("train", other)[single].any()


def test_test_problems_are_checked_in_evaluation_alone(make):
    from kdbench.errors import TestDataError

    task = make()
    with pytest.raises(TestDataError):
        task.correct("test", torch.zeros(6, 12, dtype=torch.int64))
    with pytest.raises(JobError, match="has no split 'dev'"):
        make(phase="evaluate").split("dev")


# --- lists ------------------------------------------------------------------------------------------------------------


def test_operations_by_hand():
    assert apply("sort", "a2+", 0, "") == "2+a"
    assert apply("reverse", "abc", 0, "") == "cba"
    assert results("insert_random", "ab", "c") == {"cab", "acb", "abc"}
    assert results("replace_random", "ab", "c") == {"cb", "ac"}


def test_results_at_random_are_checked_by_what_they_must_be(make):
    kind = make("random").kind
    for operation, right, wrong in (
        ("shuffle", ["bac", "cba"], ["abc", "abb", "ab", "abcd"]),
        ("replace_random", ["dbc", "abd"], ["abc", "ddc", "abe"]),
        ("insert_random", ["dabc", "abcd"], ["abc", "dbac", "abcdd"]),
        ("remove_random", ["ab", "bc"], ["abc", "a", "ba"]),
    ):
        problem = Problem("A?dabc", right[0], right[0], operation)
        assert all(kind.solves(problem, text) for text in right)
        assert not any(kind.solves(problem, text) for text in wrong)


def test_outcomes_are_all_that_the_checker_accepts(make):
    kind = make("random").kind
    for operation in ("shuffle", "replace_random", "insert_random", "remove_random", "copy"):
        problem = Problem("A?dabc", "abc" if operation == "copy" else "", "abc", operation)
        texts = {"".join(text) for count in (2, 3, 4) for text in permutations("abcd", count)}
        assert set(kind.outcomes(problem)) == {text for text in texts if kind.solves(problem, text)}


# --- squares ----------------------------------------------------------------------------------------------------------


def test_all_squares_are_there():
    assert len(squares(False)) == len(set(squares(False))) == 576
    assert len(squares(True)) == 288
    assert all(is_square(cells, True) for cells in squares(True))
    assert not is_square("1" * 16, False)
    assert not is_square("1234", False)


def test_latin_squares_have_several_solutions_and_sudokus_one(make):
    task = make("squares")
    split = task.split("train")
    for problem in split.problems:
        count = len(solutions(problem.prompt[1:], problem.level == "sudoku"))
        assert (count == 1) == (problem.level == "sudoku")
        assert all(task.kind.solves(problem, cells) for cells in task.kind.outcomes(problem))
    assert {problem.level for problem in split.problems} == {"latin", "sudoku"}


def test_a_square_must_have_the_clues(make):
    kind = make("squares").kind
    one, other = squares(False)[:2]
    assert kind.solves(Problem("A" + one, one, one, "latin"), one)
    assert not kind.solves(Problem("A" + one, one, one, "latin"), other)


# --- sums -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [9, 99])
def test_steps_are_true(make, values):
    assert worked(7, [("+", 5), ("-", 9)], 2) == "07+5=12;12-9=03;"
    rng = np.random.default_rng(0)
    kind, digits = make("arith", data={"values": values, "length": 40}, decoding={"block": 8}).kind, len(str(values))
    for _ in range(300):
        problem = kind.problem(rng)
        value = int(problem.prompt[1 : 1 + digits])
        written = problem.response.split(";")[:-1]
        for step in written:
            left, right = step.split("=")
            assert int(left[:digits]) == value
            number = int(left[digits + 1 :])
            value = value + number if left[digits] == "+" else value - number
            assert 0 <= value == int(right) <= values
        assert value == int(problem.answer)
        assert problem.prompt[1 + digits :] == "".join(step.split("=")[0][digits:] for step in written)
        assert kind.solves(problem, problem.response)
        assert not kind.solves(problem, problem.response[:-1])
        assert kind.solves(problem, f"whatever={problem.answer};")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: ListsData(operations=["copy"], items=(3, 12)), "2 <= least <= most <= 10"),
        (lambda: ListsData(operations=["copy"], items=(3, 8), length=9), "take 10 symbols, more than 9"),
        (lambda: ListsData(operations=["copy"], items=(3, 8), prompt=11), "take 12 symbols, more than 11"),
        (lambda: SquaresData(blanks=(5, 4)), "1 <= least <= most <= 12"),
        (lambda: ArithData(length=12), "does not fit a canvas of 12"),
        (lambda: ArithData(length=32, prompt=7), "does not fit a prompt of 7"),
    ],
)
def test_data_that_do_not_fit_are_refused(data, message):
    with pytest.raises(ValidationError, match=message):
        data()
