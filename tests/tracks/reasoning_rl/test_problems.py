"""Problems, their solutions, the splits that they belong to, and the vocabulary that they are written in."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench.errors import JobError
from kdbench.tracks.reasoning_rl.data import contexts, mixture
from kdbench.tracks.reasoning_rl.data.families import FAMILIES
from kdbench.tracks.reasoning_rl.data.problems import Problem, draw, split_of
from kdbench.tracks.reasoning_rl.data.programs import run
from kdbench.tracks.reasoning_rl.data.styles import RULES, STYLES, solution
from kdbench.tracks.reasoning_rl.data.verify import verify
from kdbench.tracks.reasoning_rl.data.vocabulary import tokenizer


def made(family, count=60, levels=(2, 6), seed=0):
    rng = np.random.default_rng(seed)
    return [FAMILIES[family](rng, int(rng.integers(levels[0], levels[1] + 1))) for _ in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_solution_is_right_in_every_style_and_under_every_rule(family):
    for problem in made(family):
        for style in STYLES:
            verdict = verify(problem, solution(problem, style))
            assert verdict.correct
            assert verdict.format_ok
            assert verdict.first_bad is None
            assert all(verdict.step_ok)
            assert verdict.feedback == "ok"
        for rule in RULES:
            assert verify(problem, solution(problem, rule=rule), rule).correct


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_is_written_in_the_vocabulary(family):
    known, rng = tokenizer(), np.random.default_rng(0)
    assert len(known) < 100
    problems = made(family)
    for problem in problems:
        pairs = [mixture.row(problem, problems, kind, "verbose", rng) for kind in ("plain", *mixture.CONDITIONED)]
        texts = [f"{prompt} {response}" for prompt, response in pairs]
        texts += [contexts.with_rubrics(problem, problem.solution, problem.steps[:1], problem.steps[1:])]
        texts += [solution(problem, style) for style in STYLES]
        for text in texts:
            ids = known(text, add_special_tokens=False)["input_ids"]
            assert known.unk_token_id not in ids
            assert known.decode(ids) == text


def test_sums_are_what_arithmetic_says():
    for problem in made("addcarry"):
        first, second = (words.split() for words in problem.prompt.removeprefix("add ").split(" + "))
        total = sum(int("".join(reversed(number))) for number in (first, second))
        assert int("".join(reversed(problem.answer.split()))) == total


def test_chains_are_what_evaluating_them_says():
    for problem in made("modchain"):
        *assignments, asked = problem.prompt.removeprefix("chain ").split(" ; ")
        values: dict[str, int] = {}
        for line in assignments:
            exec(line, {}, values)
        assert values[asked.removeprefix("? ")] % 10 == int(problem.answer)


def test_lists_are_sorted_reversed_or_asked_for_one():
    seen = set()
    for problem in made("sortrev"):
        words = problem.prompt.split()
        seen.add(words[0])
        if words[0] == "kth":
            assert problem.answer == sorted(words[3:])[int(words[1]) - 1]
        else:
            assert problem.answer.split() == (sorted(words[1:]) if words[0] == "sort" else words[:0:-1])
    assert seen == {"sort", "rev", "kth"}


def test_paths_are_the_only_shortest_ones():
    import networkx as nx

    for problem in made("hops", 30):
        told, asked = problem.prompt.removeprefix("path ").split(" ? ")
        graph = nx.Graph(edge.split() for edge in told.split(" , "))
        assert 5 <= len(graph) <= 8
        assert list(nx.all_shortest_paths(graph, *asked.split())) == [problem.answer.split()]
        assert len(problem.steps) == problem.level + 1


def test_stories_are_what_their_operations_say():
    for problem in made("word"):
        first, *told, _ = problem.prompt.split(" ; ")
        value = int("".join(first.split()[2:]))
        for line in told:
            verb, *number = line.split()
            n = int(number[0]) if number else 2
            value = {"buys": value + n, "gives": value - n, "doubles": value * 2, "shares": value // 2}[verb]
        assert "".join(problem.answer.split()) == str(value)
        assert value > 0


def test_programs_are_judged_by_running_them():
    problem = next(p for p in made("prog") if "x ; + y" in p.prompt)
    other = problem.answer.replace("push x push y add", "push y push x add", 1)
    assert other != problem.answer
    assert verify(problem, f"ans {other}").correct
    assert not verify(problem, "ans push x").correct
    for program, value in [
        ("push x push y add", 7),
        ("push x push y swap mod", 4 % 3),
        ("push x push 0 mod", None),
        ("push x push y", None),
        ("add", None),
        ("push", None),
        ("push 12", None),
        ("jump", None),
        ("push x " + "push x mul " * 40, None),
    ]:
        assert run(program.split(), 3, 4) == value, program


def test_constraints_are_judged_one_by_one():
    problem = Problem("rules", 3, "rules first b ; has c ; least 4", ("first b", "has c", "least 4"), "b c c d", "key")
    verdict = verify(problem, "ans b c d")
    assert verdict.rubrics == {"first b": True, "has c": True, "least 4": False}
    assert not verdict.correct
    assert verify(problem, "ans b z c z").correct
    assert not verify(problem, "ans b c <q> d").correct


def test_the_verifier_names_the_first_wrong_step_and_what_belongs_there():
    problem = Problem("addcarry", 2, "add 3 8 + 9 2", ("3 9 0 = 2 1", "8 2 1 = 1 1"), "2 1 1", "key")
    verdict = verify(problem, "3 9 0 = 2 1 ; 8 2 1 = 2 1 ; ans 2 2 1")
    assert (verdict.step_ok, verdict.first_bad, verdict.feedback) == ((True, False), 1, "no 2 : 8 2 1 = 1 1")
    assert verify(problem, "3 9 0 = 2 1 ; ans 2 1").feedback == "no 2 : 8 2 1 = 1 1"
    assert verify(problem, "3 9 0 = 2 1 ; 8 2 1 = 1 1 ; ans 2").feedback == "no : ans 2 1 1"


@pytest.mark.parametrize(
    "text", ["", "2 1 1", "ans", "ans 2 1 1 ; ans 2 1 1", "ans 2 1 1 ; 3 9 0 = 2 1", "3 ans 2 1 1", "ans 2 1 1 ok"]
)
def test_what_has_not_one_answer_at_its_end_is_wrong(text):
    problem = Problem("addcarry", 2, "add 3 8 + 9 2", ("3 9 0 = 2 1", "8 2 1 = 1 1"), "2 1 1", "key")
    assert not verify(problem, text).correct


def test_under_a_rule_the_plain_solution_is_wrong():
    problem = Problem("addcarry", 2, "add 3 8 + 9 2", ("3 9 0 = 2 1", "8 2 1 = 1 1"), "2 1 1", "key")
    assert solution(problem, rule="reverse").endswith("ans 1 1 2")
    assert not verify(problem, problem.solution, "reverse").correct
    assert ";" not in solution(problem, rule="comma")
    assert not verify(problem, problem.solution, "comma").correct


@pytest.mark.parametrize("family", FAMILIES)
def test_no_problem_of_one_split_is_in_another(family):
    rng = np.random.default_rng(1)
    splits = {name: draw([FAMILIES[family]], (2, 4), name, 60, rng) for name in ("train", "val", "test")}
    keys = {name: {problem.key for problem in rows} for name, rows in splits.items()}
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["val"]
    assert not keys["val"] & keys["test"]
    assert all(split_of(family, key) == name for name, found in keys.items() for key in found)


def test_sums_in_either_order_belong_to_one_split():
    first = next(p for p in made("addcarry") if p.level == 3)
    left, right = first.prompt.removeprefix("add ").split(" + ")
    assert first.key == "+".join(sorted([right, left]))


def test_a_family_without_enough_problems_says_so():
    rng = np.random.default_rng(0)
    with pytest.raises(JobError, match="no 400 different problems of the split 'val' at levels 2 to 2"):
        draw([FAMILIES["modchain"]], (2, 2), "val", 400, rng, distinct=True)


def test_wrong_attempts_are_right_up_to_a_step_and_wrong_from_there_on():
    rng = np.random.default_rng(0)
    for family in ("addcarry", "modchain", "sortrev", "word", "hops"):
        errors = set()
        for problem in made(family):
            verdict = verify(problem, mixture.corrupted(problem, rng))
            assert verdict.first_bad is not None
            assert not verdict.correct
            assert verdict.step_ok == tuple(i < verdict.first_bad for i in range(len(problem.steps)))
            errors.add(verdict.first_bad)
        assert {0, 1, 2} <= errors, "at any step"


def test_what_is_wrong_in_an_attempt_is_a_result_and_any_digit_of_it():
    rng = np.random.default_rng(0)
    wrong = set()
    for problem in made("addcarry"):
        for gold, step in zip(problem.steps, mixture.corrupted(problem, rng).split(" ; "), strict=False):
            (asked, said), (_, right) = step.split(" = "), gold.split(" = ")
            assert asked == gold.split(" = ")[0]
            wrong |= {i for i, (a, b) in enumerate(zip(said.split(), right.split(), strict=True)) if a != b}
    assert wrong == {0, 1}, "the digit and the carry"


def test_rows_have_the_share_of_plain_prompts_that_was_asked_for():
    problems, rng = made("addcarry", 400), np.random.default_rng(0)
    rows = mixture.rows(problems, 400, 0.25, "terse", rng)
    share = np.mean(
        [prompt.startswith("<q>") and "<wrong>" not in prompt and "<right>" not in prompt for prompt, _ in rows]
    )
    assert abs(share - 0.25) < 0.08
    assert all(prompt.endswith("<sol>") for prompt, _ in rows)


def test_an_empty_reference_is_the_plain_prompt():
    problem = made("addcarry", 1)[0]
    assert contexts.with_reference(problem, "") == contexts.plain(problem)
    assert problem.solution in contexts.with_reference(problem)
