"""Correction and re-generation: where, by what, and what comes after it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.losses.divergences import fkl
from kdbench.losses.tokens import IGNORE
from kdbench.tracks.llm.batches import TokenLogits
from kdbench.tracks.llm.blocks.revision import Pool, Reviser, chosen_by_teacher, unmetered, worst_errors
from kdbench.tracks.llm.generation import Prompts

MAX_NEW = 8


def positions(student, teacher, targets, sequence, **rest) -> TokenLogits:
    targets, sequence = torch.tensor(targets), torch.tensor(sequence)
    return TokenLogits(student, teacher, targets.float, targets, sequence, **rest)


def responses(batch) -> list[list[int]]:
    return [row[row != IGNORE].tolist() for row in batch.labels]


@pytest.fixture
def task(make_task):
    return make_task("instruct")


def reviser(task, **options) -> Reviser:
    return Reviser(task, task.student(), **({"max_new": MAX_NEW, "temperature": 0.0} | options))


def test_the_worst_error_has_the_largest_divergence_among_disagreements():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(7, 5, generator=generator) for _ in range(2))
    best = teacher.argmax(-1)
    targets = best.clone()
    wrong = [0, 2, 4]  # the second sequence has one error, the third none
    targets[wrong] = (targets[wrong] + 1) % 5
    tokens = positions(student, teacher, targets.tolist(), [0, 0, 0, 1, 1, 2, 2])
    chosen = chosen_by_teacher(tokens, "argmax", generator)
    assert torch.equal(chosen, best)
    gap = fkl(student, teacher)
    assert worst_errors(tokens, chosen) == [0 if gap[0] > gap[2] else 2, 1, -1]


def test_the_teacher_chooses_among_top_events_by_their_ids():
    teacher = torch.tensor([[0.1, 2.0, 9.0]])  # the last is all other tokens
    tokens = positions(teacher, teacher, [0], [0], events=torch.tensor([[7, 4]]))
    generator = torch.Generator().manual_seed(0)
    assert chosen_by_teacher(tokens, "argmax", generator).item() == 4
    drawn = {chosen_by_teacher(tokens, "sample", generator).item() for _ in range(60)}
    assert drawn == {7, 4}


def test_what_follows_the_correction_is_written_anew(task):
    writer = reviser(task, choice="sample")  # the most probable token of a teacher of twelve steps is always the same
    prompts = task.prompts("train", 12, task.generator("probe"))
    drafts = writer.write(prompts, writer.student, MAX_NEW)
    writer.choices.manual_seed(3)
    revised, corrected = writer.revise(drafts)
    tokens = task.tokens(writer.student, drafts)
    chosen = chosen_by_teacher(tokens, "sample", torch.Generator().manual_seed(3))
    places = worst_errors(tokens, chosen)
    assert corrected.tolist() == [place >= 0 for place in places]
    assert corrected.any()
    chosen = chosen.split(torch.bincount(tokens.sequence).tolist())
    eos, regenerated = task.tokenizer.eos_token_id, 0
    for prompt, place, choices, before, after in zip(
        prompts.ids, places, chosen, responses(drafts), responses(revised), strict=True
    ):
        if place < 0:
            assert after == before
            continue
        assert after[:place] == before[:place]
        assert after[place] == choices[place] != before[place]
        assert len(after) <= MAX_NEW
        if after[place] == eos or place == MAX_NEW - 1:
            assert len(after) == place + 1
            continue
        prefix = Prompts([[*prompt, *after[: place + 1]]], torch.tensor([0]), "")
        alone = writer.write(prefix, writer.student, MAX_NEW - place - 1)
        assert after[place + 1 :] == responses(alone)[0]
        regenerated += 1
    assert regenerated > 0
    assert torch.equal(revised.index, torch.full((12,), -1))


def test_without_regeneration_the_rest_stays(task):
    writer = reviser(task, sequence="substitute", temperature=1.0)
    drafts = writer.write(task.prompts("train", 12, task.generator("probe")), writer.student, MAX_NEW)
    changed = 0
    revised, corrected = writer.revise(drafts)
    for before, after in zip(responses(drafts), responses(revised), strict=True):
        differ = [a != b for a, b in zip(before, after, strict=False)]
        assert sum(differ) <= 1
        assert len(after) == (len(before) if after[-1] != task.tokenizer.eos_token_id else len(after))
        changed += sum(differ)
    assert changed == int(corrected.sum()) > 0


def test_a_student_that_writes_as_the_teacher_is_not_corrected(task):
    for writer in (
        Reviser(task, task.teacher(trainable=True), max_new=MAX_NEW, temperature=0.0),
        reviser(task, sequence="raw"),
    ):
        drafts = writer.drafts(6, "train")
        revised, corrected = writer.revise(drafts)
        assert responses(revised) == responses(drafts)
        assert not corrected.any()


def test_more_corrections_bring_more_of_the_teacher(task):
    prompts = task.prompts("train", 24, task.generator("probe"))
    agreement = []
    for count in (1, 4):
        writer = reviser(task, corrections=count)
        batch, _ = writer.revise(writer.write(prompts, writer.student, MAX_NEW))
        tokens = task.tokens(writer.student, batch)
        agreement.append(float((tokens.teacher.argmax(-1) == tokens.targets).float().mean()))
    assert agreement[1] > agreement[0]


def test_the_pool_is_made_anew_when_it_is_old(task):
    made = []

    def make(count):
        made.append(count)
        return reviser(task, sequence="raw")(count)

    pool = Pool(make, 6, 3, np.random.default_rng(0), portion=4)
    for step in range(1, 8):
        assert len(pool(2)) == 2
        pool.on_step(step)
    assert made == [4, 2] * 3
    other = Pool(make, 6, 3, np.random.default_rng(1))
    other.load_state_dict(pool.state_dict())
    pool.rng, other.rng = (np.random.default_rng(2) for _ in range(2))
    assert torch.equal(pool(3).input_ids, other(3).input_ids)
    assert made == [4, 2] * 3


def test_measurements_cost_nothing(task):
    task.budget.spend("steps", 1)
    with unmetered(task):
        reviser(task)(4)
        assert task.budget.spent["generated_tokens"] > 0
    assert task.budget.report() == {"steps": 1}
