"""Pseudo-subclasses: what two models say of them, the share of the data, and students that imitate embeddings."""

from __future__ import annotations

import pytest
import torch

from kdbench.tracks.llm.blocks.embeddings import imitate_embeddings, outputs_of, teacher_embeddings
from kdbench.tracks.llm.blocks.pseudo_subclasses import compare_subclasses, find_subclasses, share_of_classes


@pytest.fixture
def task(make_task):
    return make_task("classify-reviews")


def test_agreement_and_information_are_those_of_the_subclass_within_the_true_class():
    labels, topics = torch.tensor([0, 0, 0, 0, 1, 1]), list("aabbab")
    teacher = torch.zeros(6, 2, 2)
    for row, which in enumerate([0, 0, 1, 1, 0, 1]):
        teacher[row, labels[row], which] = 1.0
        teacher[row, 1 - labels[row], 1 - which] = 5.0  # of another class, which is not asked
    student = teacher.clone()
    student[0, 0] = torch.tensor([0.0, 2.0])
    values, table = compare_subclasses(teacher, student, labels, ("no", "yes"), topics)
    assert values["subclass_agreement"] == pytest.approx(5 / 6)
    assert values["topic_nmi_teacher"] == pytest.approx(1.0)
    assert values["topic_nmi_student"] < 1
    assert table == {"teacher": {"no": [2, 2], "yes": [1, 1]}, "student": {"no": [1, 3], "yes": [1, 1]}}
    assert set(compare_subclasses(teacher, student, labels, ("no", "yes"), [""] * 6)[0]) == {"subclass_agreement"}


def test_a_share_of_each_class_and_a_loader_of_it(task):
    whole, _ = share_of_classes(task, 1.0)
    half, loader = share_of_classes(task, 0.5)
    counts = torch.bincount(whole.labels)
    assert torch.allclose(torch.bincount(half.labels) / counts, torch.tensor(0.5), atol=0.05)
    for batch in loader():
        assert torch.equal(batch.labels, half.labels[batch.index])


@pytest.mark.parametrize("kind", ["pca", "random", "kmeans"])
def test_every_class_gets_twice_the_directions(task, kind):
    sequences = task.split("train").sequences
    embeddings, _ = teacher_embeddings(task, sequences)
    found = find_subclasses(task, kind, embeddings, sequences.labels, 3)
    assert found.scores(embeddings).shape == (len(sequences), 2, 6)


def test_embeddings_make_the_logits_and_rows_keep_their_order(task):
    sequences, teacher = task.split("val").sequences, task.teacher()
    embeddings, logits = teacher_embeddings(task, sequences)
    assert torch.allclose(teacher.classifier(embeddings), logits, atol=1e-5)
    (rows,) = outputs_of(task, teacher, sequences, lambda model, batch: [batch.labels])
    assert torch.equal(rows, sequences.labels)


def test_a_student_imitates_embeddings_beside_its_loss(task):
    sequences, seen = task.split("train").sequences, []

    def plain(model, batch):
        seen.append(len(batch))
        return {"ce": task.nll(model, batch).mean()}

    imitate_embeddings(task, plain, sequences, task.train_loader(), weight=1.0)
    assert len(seen) == task.spec.limits["steps"]
    assert task.budget.spent["teacher_queries"] == len(sequences)
