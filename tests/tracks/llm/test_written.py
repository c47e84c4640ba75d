"""Instructions that a pretrained model answers itself."""

from __future__ import annotations

import pytest

from kdbench.errors import JobError
from kdbench.tracks.llm.data import written
from kdbench.tracks.llm.data.specs import WrittenData
from kdbench.tracks.llm.data.written import Chat, instructions, sentences, write


@pytest.fixture
def writer(make_task, monkeypatch):
    """A network of random weights in the place of the pretrained one, and the texts that it answers with."""
    task = make_task("instruct")
    texts: list[str] = []

    def decode(tokens, **options):
        written_texts = [texts[number % len(texts)] for number in range(len(tokens))] if texts else ["and so"] * 9
        return written_texts[: len(tokens)]

    monkeypatch.setattr(task.tokenizer, "batch_decode", decode, raising=False)
    monkeypatch.setattr(written.smollm, "load_model", lambda cache: task.student())
    monkeypatch.setattr(written.smollm, "load_tokenizer", lambda cache: task.tokenizer)
    return task, texts


def test_no_instruction_is_in_two_splits_and_each_is_there_once():
    parts = {name: [text for text, _ in instructions(name)] for name in ("train", "val", "test")}
    every = [text for part in parts.values() for text in part]
    assert (
        len(every)
        == len(set(every))
        == sum(len(templates) * len(written.SUBJECTS[about].split()) for about, templates in written.TEMPLATES.items())
    )
    limits = {name: WrittenData.model_fields[name].metadata[1].le for name in parts}
    assert {name: len(part) for name, part in parts.items()} == limits


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("A cat eats fish. It also", "A cat eats fish."),
        ("Yes! It is 3.5 m long? And", "Yes! It is 3.5 m long?"),
        ("  One.\nTwo.", "One.\nTwo."),
        ("no end 3.5", ""),
        ("", ""),
    ],
)
def test_answers_are_whole_sentences(text, kept):
    assert sentences(text) == kept


def test_items_are_chats_with_one_answer_and_those_without_a_sentence_are_left_out(writer):
    task, texts = writer
    texts[:] = ["It eats. And then", "so it goes"]
    items = write(WrittenData(train=20, max_new=4), "train", task.cache)
    asked = [text for text, _ in instructions("train")]
    assert [item.instruction for item in items] == asked[0:40:2]
    assert {item.response for item in items} == {"It eats."}
    assert items[0].answers == ("It eats.",)
    assert items[0].prompt == f"user\n{asked[0]}<|im_end|>\n<|im_start|>assistant\n"
    assert Chat.from_json(items[0].to_json()) == items[0]


def test_too_few_answers_are_an_error(writer):
    task, texts = writer
    texts[:] = ["and so on"]
    with pytest.raises(JobError, match="0 items of the split val, not 16"):
        write(WrittenData(max_new=4), "val", task.cache)
