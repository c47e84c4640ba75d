"""Word problems in required formats: what fits, what is right, and what models and decoders are asked."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench.registry import discover
from kdbench.tracks.decoding.blocks.automata import compile_template, token_texts
from kdbench.tracks.decoding.data.formats import FORMATS, SCORES, make_formats
from kdbench.tracks.decoding.data.problems import FINAL, split_of
from kdbench.tracks.decoding.data.specs import FormatsData
from kdbench.tracks.decoding.decoders.autoregressive import Autoregressive
from kdbench.tracks.decoding.decoders.constrained import Constrained
from kdbench.tracks.decoding.decoders.formatted import Rewritten
from kdbench.tracks.decoding.task import DecodingTask
from kdbench.tracks.llm.data.encoding import encode

DATA = FormatsData(train=240, steps=(1, 2), largest=30, share=0.25, unasked=0.4)


@pytest.fixture
def task(tmp_path):
    made = DecodingTask(discover().task("decoding/formats", "smoke"), seed=0, method="decoding/probe", folder=tmp_path)
    made.phase = "evaluate"
    return made


def test_training_prompts_are_mixed_and_the_others_all_ask_for_a_format():
    train = make_formats(DATA, "train", 240)
    assert sum(row.prompt != row.task for row in train) == 60
    assert [row.format for row in train[:108]] == [""] * 108
    for asked, count in ((True, 10), (False, 12)):
        names = [row.format for row in train if row.format and (row.prompt != row.task) == asked]
        assert [names.count(name) for name in FORMATS] == [count] * 6
    for split in ("val", "test"):
        rows = make_formats(DATA, split, 32)
        names = [row.format for row in rows]
        assert names[:6] == list(FORMATS)
        assert {names.count(name) for name in FORMATS} == {5, 6}
        assert len({row.task for row in rows}) > 28  # formats do not ask the same questions
        assert {split_of(row.task) for row in rows} == {split}
    assert {split_of(row.task) for row in train} == {"train"}


def test_every_response_is_right_in_its_format_alone():
    for row in make_formats(DATA, "train", 240):
        assert row.check(row.response)
        assert row.complies(row.response)
        assert row.solves(row.response)
        assert row.prompt.startswith(row.task)
        if not row.format:
            assert row.prompt == row.task
            assert FINAL in row.response
            continue
        assert row.prompt in (row.task, f"{row.task}{FORMATS[row.format].instruction}\n")
        assert FINAL not in row.response
        for name, other in FORMATS.items():
            assert (other.template.read(row.response) is not None) == (name == row.format)
        if row.format == "score":
            assert row.answer in SCORES


@pytest.mark.parametrize("name", list(FORMATS))
def test_near_misses_are_told_apart(name):
    row = next(row for row in make_formats(DATA, "test", 12) if row.format == name)
    wrong = next(digit for digit in SCORES if digit != row.answer)
    end = FORMATS[name].fill(row.task, row.answer)
    rationale = row.response[: -len(end)]
    other = rationale + FORMATS[name].fill(row.task, wrong)
    assert (row.check(other), row.complies(other), row.solves(other)) == (False, True, False)
    after = row.response + " indeed"
    assert (row.check(after), row.complies(after), row.solves(after)) == (False, False, True)
    plain = f"{rationale}{FINAL}{row.answer}"
    assert (row.check(plain), row.complies(plain), row.solves(plain)) == (False, False, True)
    twice = end + end
    assert not row.complies(twice)


def test_all_slots_have_to_be_right():
    row = next(row for row in make_formats(DATA, "test", 12) if row.format == "event")
    who = FORMATS["event"].right(row.task, row.answer)["who"]
    stranger = row.response.replace(f"who: {who}", "who: Zack")
    assert row.complies(stranger)
    assert row.solves(stranger)
    assert not row.check(stranger)


def test_the_automata_take_the_responses_of_their_format(task):
    texts, end = token_texts(task.tokenizer), task.tokenizer.eos_token_id
    automata = {name: compile_template(made.template, texts, end) for name, made in FORMATS.items()}
    for row in make_formats(DATA, "val", 36):
        for name, automaton in automata.items():
            [ids] = encode([row.response], task.tokenizer)
            assert automaton.accepts([*ids, end]) == (name == row.format)
            assert automaton.accepts(ids) == (name == row.format)


def test_special_tokens_have_no_text(task):
    texts = token_texts(task.tokenizer)
    names = ("<pad>", "<bos>", "<eos>", "<sep>", "<unk>")
    assert all(texts[task.tokenizer.convert_tokens_to_ids(name)] == "" for name in names)
    [ids] = encode(['a {"b": 1}\n'], task.tokenizer)
    assert "".join(texts[token] for token in ids) == 'a {"b": 1}\n'


def test_decoders_that_know_the_format_read_the_task_alone(task, monkeypatch):
    asked = []
    plain = task.decode
    monkeypatch.setattr(
        task,
        "decode",
        lambda decoder, prompts, **rest: asked.append((decoder, prompts)) or plain(decoder, prompts, **rest),
    )
    task.kind.write(task, Autoregressive(), "test")
    [(_, prompts)] = asked
    texts = task.tokenizer.batch_decode(prompts, skip_special_tokens=True)
    assert texts == [row.prompt for row in task.split("test").rows]
    asked.clear()
    task.kind.write(task, Constrained(task.tokenizer), "test")
    assert [decoder.required.name for decoder, _ in asked] == list(FORMATS)
    for decoder, prompts in asked:
        texts = task.tokenizer.batch_decode(prompts, skip_special_tokens=True)
        assert texts == [row.task for row in task.split("test").rows if row.format == decoder.required.name]


def test_official_measures_are_those_of_the_texts(task):
    made = task.scores(Constrained(task.tokenizer))
    rows = task.split("test").rows
    assert made.metrics["compliance"] == 1.0
    texts, done = task.kind.write(task, Constrained(task.tokenizer), "test")
    assert made.examples["format_accuracy"].tolist() == [float(row.check(text)) for row, text in zip(rows, texts)]
    assert made.metrics["task_accuracy"] == np.mean([row.solves(text) for row, text in zip(rows, texts)])
    assert made.metrics["block_efficiency"] == sum(map(len, done.tokens)) / sum(done.forwards) > 1


def test_a_program_puts_the_answer_into_the_format(task, monkeypatch):
    rows = task.split("test").rows
    plain = Autoregressive.decode

    def oracle(self, target, prompts, **options):
        done = plain(self, target, prompts, **options)
        asked = task.tokenizer.batch_decode(prompts, skip_special_tokens=True)
        answers = {row.task: row.answer for row in rows}
        texts = [f"{FINAL}{answers[text]}" if place else "no idea" for place, text in enumerate(asked)]
        done.tokens = encode(texts, task.tokenizer)
        return done

    monkeypatch.setattr(Autoregressive, "decode", oracle)
    for row in rows:
        bound = Rewritten(task.tokenizer).in_format(FORMATS[row.format])
        prompts = [[task.tokenizer.bos_token_id, *ids] for ids in encode([row.task, row.task], task.tokenizer)]
        none, right = task.tokenizer.batch_decode(task.decode(bound, prompts).tokens, skip_special_tokens=True)
        assert row.check(right)
        assert none == ""
