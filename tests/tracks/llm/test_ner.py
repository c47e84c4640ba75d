"""Named entities in two languages: the languages, the rows, what training can reach, spans and their metrics."""

from __future__ import annotations

import json

import pytest
import torch

from kdbench.errors import JobError, TestDataError
from kdbench.losses.logits import UNLABELLED
from kdbench.losses.tokens import IGNORE
from kdbench.tracks.llm.blocks.entities import span_metrics
from kdbench.tracks.llm.data.encoding import encode_tags
from kdbench.tracks.llm.data.ner import TAGS, World, sentences, transliteration
from kdbench.tracks.llm.data.specs import NerData
from kdbench.tracks.llm.kinds.ner import unlabelled
from kdbench.tracks.llm.networks import models

SMALL = NerData(train=40, unlabelled=40, val=20, test=20, names=40)


# --- languages --------------------------------------------------------------------------------------------------------


def test_transliteration_is_a_bijection_of_letters():
    table = transliteration(10)
    assert sorted(table) == sorted(table.values())
    assert len(table) == 20  # lower and upper case
    assert "Kagat".translate(table) != "Kagat"
    assert "Kagat".translate(transliteration(0)) == "Kagat"
    back = {value: key for key, value in table.items()}
    assert "Kagat".translate(table).translate(back) == "Kagat"


@pytest.mark.parametrize("shared", [0.0, 0.3, 1.0])
def test_the_share_of_names_that_both_languages_write_alike(shared: float):
    world = World(NerData(names=300, shared=shared, moved=20))
    pairs = [pair for kind in ("surname", "place", "company") for pair in world.names[kind]]
    assert sum(a == b for a, b in pairs) / len(pairs) == pytest.approx(shared, abs=0.06)
    assert all(b in (a, a.translate(world.table)) for a, b in pairs)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_share_of_other_words_that_both_languages_have(share: float):
    lexicon = World(SMALL.model_copy(update={"cognates": share})).lexicon
    pairs = [pair for kind in lexicon["source"] for pair in zip(lexicon["source"][kind], lexicon["target"][kind])]
    assert sum(a == b for a, b in pairs) / len(pairs) == pytest.approx(share, abs=0.06)


def test_orders_differ_and_so_do_words_that_are_not_names():
    data = SMALL.model_copy(update={"cognates": 0.0, "mixed": 0.0})
    source, target = (sentences(data, "train", language, 40) for language in ("source", "target"))
    plain = [
        {word.lower() for row in rows for word, tag in zip(row.words[1:-1], row.tags[1:-1], strict=True) if tag == "O"}
        for rows in (source, target)
    ]
    assert not plain[0] & plain[1]
    world = World(data)
    verbs = {verb for kind in ("meet", "join", "reach", "buy", "watch") for verb in world.lexicon["target"][kind]}
    adverbs = set(world.lexicon["target"]["adverb"])
    ends = [row.words[-3] if row.words[-2] in adverbs else row.words[-2] for row in target]
    assert sum(word in verbs for word in ends) > 25  # the verb is last; the other clauses have other verbs
    assert all(row.words[-2] not in {v for k in ("meet", "join") for v in world.lexicon["source"][k]} for row in source)


@pytest.mark.parametrize(("mixed", "low", "high"), [(0.0, 1.0, 1.0), (0.2, 0.65, 0.9), (0.5, 0.35, 0.65)])
def test_now_and_then_a_sentence_has_the_order_of_the_other_language(mixed: float, low: float, high: float):
    data = SMALL.model_copy(update={"cognates": 0.0, "mixed": mixed})
    lexicon = World(data).lexicon["target"]
    verbs = {verb for kind in ("meet", "join", "reach", "buy", "stage", "win", "watch") for verb in lexicon[kind]}
    rows = [row.words[:-1] for row in sentences(data, "train", "target", 200)]
    ends = [words[-2] if words[-1] in lexicon["adverb"] else words[-1] for words in rows]
    assert low <= sum(word in verbs for word in ends) / len(ends) <= high


@pytest.mark.parametrize("language", ["source", "target"])
def test_tags_are_spans_of_the_four_types_and_splits_share_no_sentence(language: str):
    texts: set[str] = set()
    types: set[str] = set()
    for part in ("train", "val", "test"):
        rows = sentences(SMALL, part, language, 30)
        assert not texts & {row.text for row in rows}
        texts |= {row.text for row in rows}
        for row in rows:
            assert len(row.words) == len(row.tags)
            for before, tag in zip(["O", *row.tags], row.tags, strict=False):
                assert tag in TAGS
                assert not tag.startswith("I-") or before[2:] == tag[2:]
                types.add(tag[2:])
    assert types == {"", "PER", "LOC", "ORG", "MISC"}
    assert [row.text for row in sentences(SMALL, "test", language, 5)] == [
        row.text for row in sentences(SMALL.model_copy(update={"train": 7, "val": 3}), "test", language, 5)
    ]


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bytes", "bpe512"])
def test_a_word_is_tagged_at_its_first_token_and_nothing_else_is(make_task, name: str):
    task = make_task("ner2", tokenizer=name)
    words, tags = ["Ab", "kelo", "x", "."], [3, 4, 0, UNLABELLED]
    encoded = encode_tags([words, ["x"]], [tags, [0]], task.tokenizer, 64)
    labels, ids = encoded.labels[0], encoded.ids[0].tolist()
    assert labels[labels != IGNORE].tolist() == tags
    assert task.tokenizer.decode(ids, skip_special_tokens=True) == " Ab kelo x ."
    for place, word in zip((labels != IGNORE).nonzero()[:, 0].tolist(), words, strict=True):
        assert word.startswith(task.tokenizer.decode([ids[place]]).strip()[:1])
        assert task.tokenizer.decode([ids[place]]).strip()
    assert (encoded.labels[1, 4:] == IGNORE).all()
    assert encoded.batch(torch.tensor([1])).labels.shape == encoded.batch(torch.tensor([1])).input_ids.shape
    with pytest.raises(JobError, match="more than data.length"):
        encode_tags([words], [tags], task.tokenizer, 3)


def test_training_cannot_reach_a_tag_of_the_target_language(make_task):
    task = make_task("ner2")
    train = task.split("train")
    target = unlabelled(train.sequences)
    assert target.tolist() == [row.language == "target" for row in train.rows] == [False] * 32 + [True] * 32
    assert not (train.sequences.labels[target] >= 0).any()
    assert all(row.tags == [] for row in train.rows if row.language == "target")
    files = (train.folder / "rows.jsonl").read_text().splitlines()[32:]
    assert all(json.loads(line)["tags"] == [] for line in files)
    for name in ("val", "test", "source", "gold"):
        with pytest.raises(TestDataError):
            task.split(name)
    assert 0 <= task.validate(task.student())["f1"] <= 1
    task.phase = "evaluate"
    gold = task.split("gold")
    assert [row.words for row in gold.rows] == [row.words for row in train.rows[32:]]
    assert (gold.sequences.labels >= 0).any()
    assert all(row.language == "target" for name in ("val", "test") for row in task.split(name).rows)
    assert {row.language for row in task.split("source").rows} == {"source"}


def test_hard_labels_count_where_there_are_some_and_the_teacher_everywhere(make_task):
    task = make_task("ner2")
    batch = task.split("train").sequences.batch(torch.arange(28, 36))
    student = task.student()
    tokens = task.tokens(student, batch)
    words = batch.labels != IGNORE
    whole = student(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    assert torch.allclose(tokens.student, whole[words], atol=1e-5)
    assert torch.allclose(tokens.teacher, task.teacher_logits(batch)[words], atol=1e-5)
    assert torch.equal(tokens.targets, batch.labels[words])
    assert torch.equal(tokens.sequence, words.nonzero()[:, 0])
    assert torch.equal(tokens.nll == 0, tokens.targets == UNLABELLED)
    known = tokens.targets != UNLABELLED
    expected = torch.nn.functional.cross_entropy(whole[words][known], tokens.targets[known], reduction="none")
    assert torch.allclose(tokens.nll[known], expected, atol=1e-5)
    assert torch.allclose(task.nll(student, batch), tokens.nll)
    features, logits = models.word_features(student, batch)
    assert torch.allclose(logits, tokens.student, atol=1e-5)
    assert features.shape == (int(words.sum()), 16)


def test_teachers_read_labelled_rows_alone(make_task):
    rows = make_task("ner2").kind.stage_rows("tag")
    assert len(rows) == 32
    assert not (rows.labels == UNLABELLED).any()


# --- scores -----------------------------------------------------------------------------------------------------------


def test_a_span_counts_only_where_its_type_and_both_ends_are_right():
    truth = [["B-PER", "I-PER", "O", "B-LOC"], ["B-ORG", "O"]]
    assert span_metrics(truth, truth, types=True) == {
        "f1": 1.0,
        "precision": 1.0,
        "recall": 1.0,
        "f1/LOC": 1.0,
        "f1/ORG": 1.0,
        "f1/PER": 1.0,
    }
    short = [["B-PER", "O", "O", "B-LOC"], ["B-ORG", "O"]]
    assert span_metrics(truth, short)["f1"] == pytest.approx(2 / 3)
    wrong = [["B-LOC", "I-LOC", "O", "B-LOC"], ["O", "O"]]
    assert span_metrics(truth, wrong) == pytest.approx({"f1": 2 / 5, "precision": 1 / 2, "recall": 1 / 3})
    assert span_metrics(truth, [["O"] * 4, ["O"] * 2]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}
    assert span_metrics([["B-PER", "B-PER"]], [["B-PER", "I-PER"]])["f1"] == 0.0  # two names are not one


def test_scores_are_those_of_exact_sentences_and_of_both_languages(make_task):
    task = make_task("ner2")
    task.phase = "evaluate"
    scores = task.scores(task.teacher())
    assert scores.metrics["agreement"] == 1
    assert scores.examples["sentence_accuracy"].mean() == pytest.approx(scores.metrics["sentence_accuracy"])
    measured, tags = task.kind.measured(task, task.teacher(), "test")
    assert measured["f1"] == scores.metrics["f1"]
    rows = task.split("test").rows
    assert [len(row) for row in tags] == [len(row.words) for row in rows]
    flat = [a == b for row, guess in zip(rows, tags, strict=True) for a, b in zip(row.tags, guess, strict=True)]
    assert sum(flat) / len(flat) == pytest.approx(scores.metrics["accuracy"])
