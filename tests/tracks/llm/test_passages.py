"""Questions about passages: what is asked stands in the passage, once for whom and what."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench.tracks.llm.data import instruct, passages
from kdbench.tracks.llm.data.specs import PASSAGES, InstructData


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_every_fact_is_said_twice_and_no_value_is_of_two_persons(level):
    found = passages.passage(np.random.default_rng(level), level)
    assert len(found.facts) == level + 1
    for person, facts in found.facts.items():
        assert found.text.count(person) == 2 * passages.FACTS == 2 * len(facts)
        for relation, value in facts.items():
            assert found.text.split().count(value) + found.text.split().count(f"{value}.") == 2
            assert [who for who, others in found.facts.items() if others.get(relation) == value] == [person]
    sentences = found.text.split(". ")
    assert len(sentences) == 2 * passages.FACTS * (level + 1) + level
    assert len(set(sentences)) == len(sentences)


def test_answers_stand_in_the_passage_that_follows_the_question():
    data = InstructData(families=PASSAGES, train=60, ood=0, length=400, distractors=0.0, difficulty=(1, 3))
    items = instruct.generate(data, "train", 60)
    assert {item.family for item in items} == set(PASSAGES)
    for item in items:
        question, text = item.instruction.split("\n")
        for part in item.response.split(", "):
            assert part in text
            assert part not in question.split()
        assert item.check(item.response)
        assert len(text) > 3 * len(question + item.response)


def test_a_report_has_both_facts_in_the_order_of_the_question():
    rng = np.random.default_rng(0)
    for _ in range(20):
        instruction, answer = passages.report(rng, 2)
        asked = instruction.split(" of ")[0].removeprefix("Give ").split(" and ")
        values = answer.split(", ")
        assert len(asked) == len(values) == 2
        for relation, value in zip(asked, values, strict=True):
            assert value in passages.VALUES[relation]


def test_splits_share_no_instruction():
    data = InstructData(families=PASSAGES, train=80, val=20, ood=0, length=400)
    train = {item.instruction for item in instruct.generate(data, "train", 80)}
    assert not train & {item.instruction for item in instruct.generate(data, "val", 20)}
