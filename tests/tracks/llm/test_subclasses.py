"""Encoders with subclasses: where they start, what they predict, and that transformers reads them back."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from kdbench.tracks.llm.blocks.subclasses import subclass_logits, with_subclasses


@pytest.fixture
def pair(make_task):
    task = make_task("classify-reviews")
    student = task.student()
    with task.seeded("head"):
        wide = with_subclasses(student, 4)
    return student.eval(), wide.eval(), next(iter(task.train_loader()))


def logits(model, batch):
    with torch.no_grad():
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


def test_class_probabilities_are_sums_over_subclasses(pair):
    _, wide, batch = pair
    with torch.no_grad():
        own = F.softmax(subclass_logits(wide, batch), -1)
    assert own.shape == (len(batch), 8)
    torch.testing.assert_close(F.softmax(logits(wide, batch), -1), own.reshape(-1, 2, 4).sum(-1))


def test_without_noise_it_starts_at_the_network_that_it_was_made_of(pair):
    student, wide, batch = pair
    rows = student.classifier.weight.repeat_interleave(4, 0)
    assert not torch.allclose(wide.classifier.linear.weight, rows)
    with torch.no_grad():
        wide.classifier.linear.weight.copy_(rows)
    torch.testing.assert_close(F.softmax(logits(wide, batch), -1), F.softmax(logits(student, batch), -1))


def test_the_body_is_a_copy(pair):
    student, wide, _ = pair
    theirs = dict(student.bert.named_parameters())
    for name, mine in wide.bert.named_parameters():
        assert torch.equal(mine, theirs[name])
        assert mine.data_ptr() != theirs[name].data_ptr()


def test_transformers_reads_what_was_saved(pair, tmp_path):
    _, wide, batch = pair
    wide.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert type(again) is type(wide)
    assert torch.equal(logits(again, batch), logits(wide, batch))
