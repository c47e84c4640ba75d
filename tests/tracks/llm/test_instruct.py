"""The instruction generator: right answers, disjoint splits, known probabilities and positions."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from kdbench.errors import JobError
from kdbench.tracks.llm.data import distractors, families, instruct
from kdbench.tracks.llm.data.knowledge import RELATIONS, VALUES, Knowledge
from kdbench.tracks.llm.data.specs import FAMILIES, HELD_OUT, InstructData

DATA = InstructData(train=600, persons=20, difficulty=(1, 3), distractors=0.0)


@pytest.fixture(scope="module")
def items() -> list[instruct.Item]:
    return instruct.generate(DATA, "train", 600)


def numbers(text: str) -> list[int]:
    return [int(word) for word in re.findall(r"\d+", text)]


def solve(item: instruct.Item) -> str:
    """The answer by another way than the generator's: from the instruction's text alone."""
    tail = item.instruction.split(": ")[-1].rstrip("?")
    values = numbers(item.instruction)
    match item.family:
        case "add" | "add_steps":
            return str(sum(values))
        case "subtract":
            return str(max(values) - min(values))
        case "reverse":
            return tail[::-1]
        case "sort_letters":
            return " ".join(sorted(tail.split()))
        case "count_letter":
            return str(tail.count(re.search(r"often is (\w) in", item.instruction)[1]))
        case "nth_word":
            ordinals = ["first", "second", "third", "fourth", "fifth", "sixth"]
            return tail.split()[ordinals.index(item.instruction.split()[2])]
        case "list_max":
            return str(max(values))
        case "list_sort":
            return " ".join(map(str, sorted(values)))
        case "list_dedupe":
            return " ".join(map(str, dict.fromkeys(values)))
    raise AssertionError(item.family)


def test_every_answer_is_right(items):
    checked = Counter()
    for item in items:
        if item.family in ("lookup", "rewrite"):
            continue
        assert families.final_answer(item.response) == solve(item), item
        checked[item.family] += 1
    assert set(checked) == set(FAMILIES) - {"lookup", "rewrite"}


def test_checkers_accept_every_answer_and_nothing_else(items):
    for item in items:
        assert all(item.check(answer) for answer in item.answers)
        assert item.check(f" {item.response}\n")
        assert not item.check("")
        assert not item.check(item.response + " 7")
        assert not item.check(item.response[:-1])


def test_working_with_steps_is_judged_by_its_result():
    assert families.check("add_steps", "anything => 59", ("1+8=9, 2+3=5 => 59",))
    assert not families.check("add_steps", "59", ("1+8=9, 2+3=5 => 59",)), "the result must be marked as such"
    assert not families.check("add_steps", "1+8=9, 2+3=5 => 58", ("1+8=9, 2+3=5 => 59",))


def test_the_grammar_gives_its_answers_with_the_stated_probabilities():
    rng = np.random.default_rng(0)
    drafts = [families.rewrite(rng, 1) for _ in range(50)]
    for draft in drafts:
        assert len(set(draft.answers)) == 6
        assert sum(draft.probabilities) == pytest.approx(1)
    # training responses follow them: compare observed and expected frequency of each word order
    data = InstructData(families=("rewrite",), train=3000)
    rows = instruct.generate(data, "train", 3000)
    passive = np.mean([" was " in row.response for row in rows])
    assert passive == pytest.approx(0.3, abs=0.03)


def test_no_instruction_is_in_two_splits():
    drawn = {name: {item.instruction for item in instruct.generate(DATA, name, 300)} for name in instruct.SPLITS}
    assert not drawn["train"] & drawn["val"]
    assert not drawn["train"] & drawn["test"]
    assert not drawn["val"] & drawn["test"]


def test_every_fact_of_the_test_is_asked_in_training_in_other_words():
    data = InstructData(families=("lookup",), persons=5, train=400, distractors=0)
    train = {item.instruction for item in instruct.generate(data, "train", 400)}
    test = instruct.generate(data, "test", 50)
    knowledge = Knowledge.make(5, 0)
    for item in test:
        assert item.instruction not in train
        person = next(name for name in knowledge.persons if name in item.instruction)
        index = knowledge.persons.index(person)
        relation = next(
            r for r in RELATIONS if item.response in VALUES[r] and knowledge.facts[r][index] == item.response
        )
        questions = {knowledge.question(index, relation, i)[0] for i in range(4)}
        assert questions & train


def test_held_out_families_are_never_trained_on(items):
    held_out = instruct.held_out(InstructData(ood=20))
    assert {item.family for item in held_out} == set(HELD_OUT)
    assert not {item.family for item in items} & set(HELD_OUT)


def test_distractors_stand_where_they_are_said_to_and_change_no_answer():
    plain = instruct.generate(DATA.model_copy(update={"distractors": 0.0}), "train", 50)
    assert all(item.distractor is None for item in plain)
    for item in instruct.generate(DATA.model_copy(update={"distractors": 1.0}), "train", 100):
        start, end = item.distractor
        assert item.instruction[start:end] in distractors.DISTRACTORS
        first, last = item.distractor_in_prompt()
        assert item.prompt[first:last] == item.instruction[start:end]
        rest = (item.instruction[:start] + item.instruction[end:]).strip()
        assert rest
        assert not any(sentence in rest for sentence in distractors.DISTRACTORS)


def test_difficulty_makes_instructions_longer():
    def mean_length(level: int) -> float:
        data = InstructData(families=("list_sort", "reverse", "add"), difficulty=(level, level), distractors=0)
        return float(np.mean([len(item.instruction) for item in instruct.generate(data, "train", 300)]))

    lengths = [mean_length(level) for level in (1, 2, 3, 4)]
    assert lengths == sorted(lengths)
    assert lengths[-1] > lengths[0] + 3


def test_the_same_data_give_the_same_items_whatever_else_is_asked_for():
    first = instruct.generate(DATA, "train", 50)
    instruct.generate(DATA, "test", 7)
    assert instruct.generate(DATA, "train", 50) == first
    assert instruct.generate(DATA.model_copy(update={"seed": 1}), "train", 50) != first


def test_items_survive_json(items):
    for item in items[:50]:
        assert instruct.Item.from_json(item.to_json()) == item


def test_a_larger_knowledge_base_extends_a_smaller_one():
    small, large = Knowledge.make(10, 3), Knowledge.make(100, 3)
    assert large.persons[:10] == small.persons
    assert all(large.facts[r][:10] == small.facts[r] for r in RELATIONS)
    assert len(set(large.persons)) == 100


def test_weights_that_leave_nothing_to_draw_are_refused():
    with pytest.raises(JobError, match="all zero"):
        instruct.generate(InstructData(families=("add",), weights={"add": 0.0}), "train", 1)
