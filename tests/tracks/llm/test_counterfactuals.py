"""Contexts, their flagged tokens, what is deleted, and who still answers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kdbench.tracks.llm.blocks.counterfactuals import (
    blanks,
    contexts_of,
    difference,
    flagged,
    improved,
    rows_of,
    runs,
    solved,
    token_values,
    unit,
)
from kdbench.tracks.llm.data.encoding import encode_pairs
from kdbench.tracks.llm.data.instruct import generate
from kdbench.tracks.llm.data.specs import InstructData
from kdbench.tracks.llm.generation import Responses, as_batch
from kdbench.tracks.llm.networks.tokenizers import SIZES, pad_id, train, wrap

DATA = InstructData(train=40, persons=8, distractors=0.5, families=("add", "add_steps", "list_max", "rewrite"))
ITEMS = generate(DATA, "train", 40)


@pytest.fixture(scope="module", params=["bytes", "bpe512"])
def tokenizer(request):
    return wrap(train([item.text for item in ITEMS], SIZES[request.param]))


# --- contexts ---------------------------------------------------------------------------------------------------------


def test_a_context_is_the_row_of_its_item_and_its_stretch_the_instruction(tokenizer):
    contexts = contexts_of(ITEMS, tokenizer)
    sequences, _ = encode_pairs([i.prompt for i in ITEMS], [i.response for i in ITEMS], tokenizer, 1000)
    mine = rows_of(contexts, tokenizer)
    assert torch.equal(mine.ids, sequences.ids)
    assert torch.equal(mine.starts, sequences.starts)
    for item, context in zip(ITEMS, contexts, strict=True):
        assert item.instruction in tokenizer.decode(context.ids[context.begin : context.end])
        assert len(context.fixed) == len(context.distractor) == context.end - context.begin
        assert context.end <= context.start


def test_the_tokens_of_the_irrelevant_sentence_are_known(tokenizer):
    assert any(item.distractor for item in ITEMS)
    for item, context in zip(ITEMS, contexts_of(ITEMS, tokenizer), strict=True):
        inside = [t for t, known in zip(context.ids[context.begin :], context.distractor, strict=False) if known]
        sentence = item.instruction[slice(*item.distractor)] if item.distractor else ""
        assert tokenizer.decode(inside).strip() == sentence


def test_steps_of_a_response_are_contexts_of_what_follows(tokenizer):
    plain, contexts = contexts_of(ITEMS, tokenizer), contexts_of(ITEMS, tokenizer, steps=True)
    later = [context for context in contexts if context.said]
    assert [context for context in contexts if not context.said] == plain
    assert {ITEMS[context.item].family for context in later} == {"add_steps"}
    for context in later:
        response = ITEMS[context.item].response
        assert context.said + tokenizer.decode(context.ids[context.start : -1]) == response
        assert tokenizer.decode(context.ids[context.begin : context.end]) == context.said
        assert context.ids == plain[context.item].ids


def test_only_white_space_must_stay(tokenizer):
    for token in blanks(tokenizer):
        assert tokenizer.decode([token]).strip() == ""
    assert set(tokenizer(" ", add_special_tokens=False)["input_ids"]) <= blanks(tokenizer)
    assert not blanks(tokenizer) & set(tokenizer("Add", add_special_tokens=False)["input_ids"])


# --- deletion ---------------------------------------------------------------------------------------------------------


def test_what_is_deleted_is_gone_and_the_answer_stays(tokenizer):
    context = contexts_of(ITEMS, tokenizer)[0]
    pruned = context.without([1, 2, 4], source=7)
    kept = [i for i in range(len(context.ids)) if i - context.begin not in (1, 2, 4)]
    assert list(pruned.ids) == [context.ids[i] for i in kept]
    assert pruned.ids[pruned.start :] == context.ids[context.start :]
    assert (pruned.start, pruned.end) == (context.start - 3, context.end - 3)
    assert (pruned.deleted, pruned.source) == ((1, 2, 4), 7)
    assert pruned.distractor == tuple(d for i, d in enumerate(context.distractor) if i not in (1, 2, 4))
    scored = rows_of([pruned], tokenizer).batch(torch.tensor([0])).scored
    assert int(scored.sum()) == len(context.ids) - context.start


def test_a_context_without_nothing_is_itself(tokenizer):
    context = contexts_of(ITEMS, tokenizer)[1]
    assert context.without([]) == context


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "rate", "count"), [(20, 0.1, 3), (19, 0.1, 2), (5, 0.1, 1), (40, 0.05, 3), (7, 0.0, 1)])
def test_the_share_is_rounded_down_and_one_more_is_flagged(n, rate, count):
    scores = np.random.default_rng(n).permutation(n) / (n - 1)
    flags = flagged(scores, rate, [False] * n)
    assert flags.sum() == count
    assert scores[flags].max() < scores[~flags].min()


def test_nothing_above_the_cap_nothing_fixed_and_nothing_where_all_are_alike():
    scores = np.array([0.6, 0.7, 0.8, 1.0])
    assert not flagged(scores, 0.5, [False] * 4).any()
    assert flagged(scores, 0.5, [False] * 4, cap=1.0).tolist() == [True, True, True, False]
    assert flagged(scores, 0.5, [True, False, False, False], cap=1.0).tolist() == [False, True, True, False]
    assert not flagged(np.zeros(4), 0.9, [False] * 4).any()


def test_runs_are_the_flags_and_do_not_touch():
    rng = np.random.default_rng(0)
    for _ in range(20):
        flags = rng.random(15) < 0.5
        parts = runs(flags)
        assert np.concatenate([np.zeros(0, int), *parts]).tolist() == np.flatnonzero(flags).tolist()
        assert all((np.diff(part) == 1).all() for part in parts)
        assert all(later[0] - part[-1] > 1 for part, later in itertools.pairwise(parts))


def test_the_difference_is_least_where_the_student_alone_depends_on_a_token():
    teacher, student = np.array([1.0, 3.0, 0.5, 2.0]), np.array([10.0, 20.0, 40.0, 10.0])
    scores = difference(teacher, student)
    assert (scores.min(), scores.max()) == (0, 1)
    assert scores.argmin() == 2
    assert np.allclose(difference(5 * teacher + 1, 0.1 * student - 3), scores)  # each has its own scale
    assert not flagged(difference(student, student), 0.5, [False] * 4).any()
    assert unit(np.array([2.0, 2.0])).tolist() == [0, 0]


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def task(make_task):
    return make_task("instruct")


def test_values_are_those_of_the_stretch_and_what_they_cost(task):
    items = task.train_items()[:5]
    contexts, teacher = contexts_of(items, task.tokenizer), task.teacher()
    parts = token_values(task, teacher, contexts, "gradient")
    assert [len(part) for part in parts] == [context.end - context.begin for context in contexts]
    assert all((part > 0).all() for part in parts)
    assert task.budget.spent["teacher_queries"] == 5
    flops = task.budget.spent["flops"]
    token_values(task, task.student(), contexts, "surprise")
    assert task.budget.spent["teacher_queries"] == 5
    assert task.budget.spent["flops"] > flops


def test_an_answer_is_right_together_with_the_steps_that_it_goes_on_from(task, monkeypatch):
    items = [item for item in task.train_items() if item.family == "add_steps"][:3]
    contexts = contexts_of(items, task.tokenizer, steps=True)
    assert any(context.said for context in contexts)

    def rollout(answers):
        def call(model, prompts, **options):
            tokens = [answers[tuple(ids)] for ids in prompts.ids]
            return as_batch(prompts, Responses(tokens, [[0.0] * len(row) for row in tokens]), pad_id(task.tokenizer))

        return call

    rest = {context.ids[: context.start]: list(context.ids[context.start :]) for context in contexts}
    monkeypatch.setattr(task, "rollout", rollout(rest))
    assert solved(task, task.student(), contexts, items).all()
    wrong = {key: ids[:-2] + task.tokenizer("x")["input_ids"] for key, ids in rest.items()}
    monkeypatch.setattr(task, "rollout", rollout(wrong))
    assert not solved(task, task.student(), contexts, items).any()


def test_an_answer_is_likelier_without_a_token_or_with_it(task):
    contexts = contexts_of(task.train_items()[:6], task.tokenizer)
    pruned, student = [context.without([0, 1]) for context in contexts], task.student()
    assert not improved(task, student, contexts, contexts).any()
    assert (improved(task, student, contexts, pruned) ^ improved(task, student, pruned, contexts)).all()
