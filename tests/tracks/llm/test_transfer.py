"""Models that get another vocabulary."""

from __future__ import annotations

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.llm.blocks.transfer import bits_per_byte, make_room, rewritten, tokenizer_named


def test_a_tokenizer_that_does_not_exist_is_a_clear_error(make_task, tmp_path):
    with pytest.raises(UsageError, match="no tokenizer"):
        tokenizer_named(make_task("text"), str(tmp_path / "nowhere"))


def test_student_and_body_get_the_vocabulary_or_stay_as_they_are(make_task):
    task = make_task("text")
    tokenizer = tokenizer_named(task, "bytes")
    assert tokenizer_named(task, "task") is task.tokenizer
    for kind, source in (("task", task.student()), ("body", task.teacher())):
        same = rewritten(task, kind, task.tokenizer)
        pairs = zip(same.parameters(), source.parameters(), strict=True)
        assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
        means, drawn = (rewritten(task, kind, tokenizer, random=random) for random in (False, True))
        embeddings = [model.get_input_embeddings().weight.detach() for model in (means, drawn)]
        assert embeddings[0].shape == (len(tokenizer), source.config.hidden_size)
        assert not torch.equal(*embeddings)
        assert float(embeddings[1].std()) == pytest.approx(float(embeddings[0].std()), rel=0.1)
        again = rewritten(task, kind, tokenizer, random=True)
        assert all(torch.equal(a, b) for a, b in zip(drawn.parameters(), again.parameters(), strict=True))


def test_bits_per_byte_are_those_of_the_score_and_an_average_of_equals_changes_nothing(make_task):
    task = make_task("text")
    task.phase = "evaluate"
    student = task.student()
    alone = bits_per_byte(task, [student], task.tokenizer)
    assert alone == pytest.approx(task.score(student)["bits_per_byte"], rel=1e-5)
    assert bits_per_byte(task, [student, student], task.tokenizer) == pytest.approx(alone, rel=1e-6)


def test_rotary_positions_go_on_and_learned_ones_end(make_task):
    task = make_task("text")
    model = task.student()
    room = model.config.max_position_embeddings
    make_room(model, room)
    assert model.config.max_position_embeddings == room
    make_room(model, room + 40)
    ids = torch.randint(len(task.tokenizer), (1, room + 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, shifted = model(ids).logits, model(ids, position_ids=torch.arange(room + 40)[None] + 7).logits
    assert torch.allclose(whole, shifted, atol=1e-4), "only distances count, those beyond the old room as well"
    learned = task.new_student(task.spec.student.model_copy(update={"family": "gpt2", "stages": ()}))
    with pytest.raises(UsageError, match=f"the student has positions for {room}"):
        make_room(learned, room + 1)
