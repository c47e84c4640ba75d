"""Spans of text, and which neighbouring tokens lie in one."""

from __future__ import annotations

import torch

from kdbench.tracks.llm.blocks.alignment import vocabulary_bytes
from kdbench.tracks.llm.blocks.phrases import neighbours, spans
from kdbench.tracks.llm.data.instruct import Item


def found(text: str, kind: str | None = None) -> list[str]:
    return [text[start:end] for start, end, what in spans(text) if kind in (None, what)]


def test_numbers_names_expressions_and_identifiers():
    assert found("7+8=15, 1+2=3 => 45", "expression") == ["7+8=15", "1+2=3"]
    assert found("12 7 450", "number") == ["12", "7", "450"]
    assert found("Nils Oake lives in Norvik", "name") == ["Nils Oake"]
    assert found("self.value = os.path.join(root, name_of)", "identifier") == ["self.value", "os.path.join", "name_of"]


def test_phrases_end_at_function_words_and_punctuation():
    assert found("The old boat was sold by the smith, and it was not repaired.") == [
        "The old boat",
        "was sold",
        "by the smith",
        "was not repaired",
    ]


def test_spans_are_in_order_and_do_not_overlap():
    text = "On Monday the baker made 3+4=7 cakes in os.path for Nils Oake of the old town at 12.5 o'clock. " * 3
    ends = [0]
    for start, end, _ in spans(text):
        assert ends[-1] <= start < end
        ends.append(end)
    assert len(ends) > 15


def test_tokens_of_one_span_are_neighbours_and_others_are_not(make_task):
    task = make_task("instruct")
    words = vocabulary_bytes(task.tokenizer)
    items = [
        Item("x", response, (response,), (1.0,), "rewrite", 1) for response in ("12 345", "The boat was sold.", "7")
    ]
    batch = task.kind.encode_rows(items, task.tokenizer).batch(torch.arange(3))
    pairs = neighbours(batch, words).tolist()
    targets = batch.labels[:, 1:][batch.scored].tolist()
    rows = batch.scored.nonzero()[:, 0].tolist()
    joined = [(task.tokenizer.decode([targets[t]]), task.tokenizer.decode([targets[t + 1]])) for t in pairs]
    assert ("1", "2") in joined
    assert ("3", "4") in joined
    assert not any("2" in left and right.strip() == "3" for left, right in joined)
    assert all(rows[t] == rows[t + 1] for t in pairs)
    ends = {t for t in range(len(targets)) if targets[t] == task.tokenizer.eos_token_id}
    assert not ends & {place for t in pairs for place in (t, t + 1)}
    anywhere = neighbours(batch, words, within_spans=False).tolist()
    assert set(pairs) < set(anywhere)
    assert anywhere == [t for t in range(len(rows) - 1) if rows[t] == rows[t + 1]]
