"""Whether irrelevant sentences are found, and whether a model minds them."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench.tracks.llm.blocks.counterfactuals import contexts_of
from kdbench.tracks.llm.blocks.distraction import attention_on_distractors, detection, distracted, resistance
from kdbench.tracks.llm.data.distractors import DISTRACTORS, PATTERNS, TOPICS, on_topic
from kdbench.tracks.llm.data.families import THINGS, WORDS
from kdbench.tracks.llm.data.instruct import generate, split_of
from kdbench.tracks.llm.data.knowledge import VALUES, Knowledge
from kdbench.tracks.llm.data.specs import FAMILIES, HELD_OUT, PASSAGES, DistractorsData, InstructData
from kdbench.tracks.llm.networks.tokenizers import SIZES, train, wrap

DATA = InstructData(train=60, test=20, persons=8, distractors=0.5)


@pytest.fixture(scope="module")
def contexts():
    return contexts_of(generate(DATA, "train", 60), wrap(train([], SIZES["bytes"])))


def test_a_score_that_knows_finds_all_and_one_that_knows_nothing_finds_what_chance_does(contexts):
    known = [np.array(context.distractor) for context in contexts]
    perfect = detection(contexts, [1.0 - part for part in known], known)
    assert perfect["detection_auc"] == perfect["detection_precision"] == perfect["detection_recall"] == 1
    rng = np.random.default_rng(0)
    scores = [rng.random(len(part)) for part in known]
    blind = detection(contexts, scores, [score < 0.2 for score in scores])
    assert blind["detection_auc_lower"] < 0.5 < 2 * blind["detection_auc"] - blind["detection_auc_lower"]
    assert blind["detection_precision"] == pytest.approx(blind["distractor_share"], abs=0.08)
    assert blind["detection_recall"] == pytest.approx(0.2, abs=0.08)
    opposite = detection(contexts, [part + 0.0 for part in known], [~part for part in known])
    assert opposite["detection_auc"] == opposite["detection_precision"] == 0


def test_without_irrelevant_sentences_there_is_nothing_to_find(contexts):
    clean = [context for context in contexts if not any(context.distractor)]
    scores = [np.zeros(len(context.fixed)) for context in clean]
    assert detection(clean, scores, [score > 0 for score in scores]) == {}


def test_every_item_comes_with_and_without_a_sentence():
    plain, items = distracted(DATA)
    assert len(plain) == len(items) == 20
    for one, other in zip(plain, items, strict=True):
        assert one.distractor is None
        start, end = other.distractor
        assert other.instruction[start:end] not in one.instruction
        assert one.instruction in other.instruction
        assert (one.answers, one.family) == (other.answers, other.family)
        assert one.family == "lookup" or split_of(one.instruction) == "test"
    assert distracted(DATA)[1] == items


def sentence_of(item) -> str:
    return item.instruction[slice(*item.distractor)]


def test_sentences_are_fixed_or_speak_of_what_is_asked_about():
    assert {sentence_of(item) for item in distracted(DATA)[1]} <= set(DISTRACTORS)
    data = DistractorsData(**DATA.model_dump(exclude={"kind"}) | {"test": 200})
    items = distracted(data)[1]
    assert [item.instruction for item in items] != [item.instruction for item in distracted(DATA)[1]]
    assert len({sentence_of(item) for item in items}) > 150
    persons = Knowledge.make(data.persons, data.seed).persons
    values = {value for known in VALUES.values() for value in known}
    seen = set()
    for item in items:
        said, topic = sentence_of(item), TOPICS[item.family]
        tokens = said.rstrip(".").replace(",", "").split()
        seen.add(topic)
        if topic == "facts":
            assert any(name in said and name not in item.instruction.replace(said, "") for name in persons)
            assert values & set(tokens)
        elif topic == "numbers":
            assert sum(token.isdigit() for token in tokens) == 2
        elif topic == "letters":
            assert sum(len(token) == 1 and token.islower() for token in tokens) >= 2
        else:
            assert set(tokens) & set(WORDS if topic == "words" else THINGS)
    assert seen == {*PATTERNS, "facts"}


def test_every_family_has_sentences_of_its_own():
    knowledge, rng = Knowledge.make(2, 0), np.random.default_rng(0)
    for family in (*FAMILIES, *HELD_OUT, *PASSAGES):
        instruction = f"Where does {knowledge.persons[0]} live?"
        said = {on_topic(rng, family, level, knowledge, instruction) for level in (1, 4) for _ in range(20)}
        assert len(said) > 5
        assert not any("{" in sentence or knowledge.persons[0] in sentence for sentence in said)


def test_a_model_is_asked_both_ways_and_its_attention_is_a_share(make_task):
    task = make_task("instruct")
    values, table = resistance(task, task.teacher())
    assert set(values) == {"exact_match_plain", "exact_match_distracted", "distraction"}
    assert set(table) <= set(task.spec.data.families)
    assert 0 < attention_on_distractors(task, task.teacher()) < 1
