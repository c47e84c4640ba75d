"""Some positions of a split, evenly from its batches."""

from __future__ import annotations

import torch

from kdbench.tracks.llm.blocks.samples import chosen, sample_positions


def test_chosen_positions_are_those_of_every_field(make_task):
    task = make_task("instruct")
    tokens = task.tokens(task.student(), next(iter(task.train_loader())))
    part = chosen(tokens, torch.tensor([3, 1]))
    for name in ("student", "teacher", "nll", "targets", "sequence"):
        assert torch.equal(getattr(part, name), getattr(tokens, name)[[3, 1]])
    assert part.logits is None
    assert len(chosen(tokens, slice(5)).targets) == 5


def test_a_sample_is_drawn_from_all_batches_and_the_same_for_the_same_generator(make_task):
    task = make_task("instruct", evaluation={"batch_size": 4})
    student = task.student()
    drawn = [sample_positions(task, student, "val", 12, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(drawn[0].targets, drawn[1].targets)
    assert len(drawn[0].targets) == 12  # three from each of four batches
    assert not drawn[0].student.requires_grad
    known = {tuple(row.tolist()) for row in sample_positions(task, student, "val", 10_000, torch.Generator()).teacher}
    assert {tuple(row.tolist()) for row in drawn[0].teacher} <= known
