"""Vectors in place of contexts: what the reader makes of them, where they stand, gradients, what is read once."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from kdbench.losses.tokens import IGNORE
from kdbench.tracks.llm.blocks.demonstrations import prefix_cost
from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.tracks.llm.networks.models import scored_logits, targets_of, token_nll
from kdbench.tracks.llm.networks.soft_prefix import cut_rows, with_prefix


@pytest.fixture
def task(make_task):
    return make_task("icl")


def ids_of(task) -> dict[str, int]:
    return {
        name: task.tokenizer(text, add_special_tokens=False)["input_ids"][0]
        for name, text in (("separator", " ;"), ("arrow", " ->"))
    }


def make(task, distiller: bool = True, **settings):
    torch.manual_seed(0)
    return with_prefix(task.teacher(), task.student() if distiller else None, ids_of(task), **settings)


def some(task, count: int = 4) -> TextBatch:
    return task.split("train").sequences.batch(torch.arange(count))


def test_rows_are_cut_before_their_query(task):
    model, batch = make(task), some(task)
    cut = cut_rows(batch, model.cuts(batch))
    for i, row in enumerate(task.split("train").rows[:4]):
        context = task.tokenizer.decode(cut.context[i][cut.context_mask[i].bool()])
        rest = task.tokenizer.decode(cut.rest[i][cut.rest_mask[i].bool()], skip_special_tokens=True)
        assert (context, rest) == (row.context, row.question + row.response)
    assert torch.equal(cut.labels[cut.labels != IGNORE], targets_of(batch))
    assert torch.equal(batch.input_ids.gather(1, cut.places)[cut.rest_mask.bool()], cut.rest[cut.rest_mask.bool()])


def test_vectors_that_are_the_embeddings_of_the_context_change_nothing(task):
    """The reader then sees the very row: the same positions, attention and alignment."""
    model, rows = make(task).eval(), some(task, 6)
    for i in range(6):
        batch = rows.rows(torch.tensor([i]))
        batch = batch.rows(torch.tensor([0]))
        length = int(batch.attention_mask.sum())
        batch = TextBatch(*(t[:, :length] for t in (batch.input_ids, batch.attention_mask, batch.labels)), batch.index)
        cut = cut_rows(batch, model.cuts(batch))
        with torch.no_grad():
            states = model.states(model.reader.get_input_embeddings()(cut.context), cut)
            whole = task.teacher().base_model(input_ids=batch.input_ids).last_hidden_state
        assert torch.allclose(states, whole[:, -states.shape[1] :], atol=1e-5)
        head = model.reader.get_output_embeddings()
        mine = head(states[:, :-1][cut.labels != IGNORE])
        assert torch.allclose(mine, scored_logits(task.teacher(), batch), atol=1e-5)


def test_padding_and_company_do_not_matter(task):
    model = make(task).eval()
    rows = task.split("train").sequences
    lengths = rows.lengths.tolist()
    apart = sorted(range(len(lengths)), key=lengths.__getitem__)
    batch = rows.batch(torch.tensor([apart[0], apart[-1], apart[3]]))
    assert len(set(batch.attention_mask.sum(dim=1).tolist())) > 1
    with torch.no_grad():
        together = scored_logits(model, batch)
        alone = torch.cat([scored_logits(model, rows.batch(batch.index[i : i + 1])) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_vectors_take_their_place_in_the_count_of_positions(task):
    """A query behind more vectors is further away: rotary positions tell it apart, so offsets are real."""
    model = make(task, vectors=3).eval()
    cut = cut_rows(some(task), model.cuts(some(task)))
    seen = []
    hook = model.reader.base_model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append((inputs["position_ids"], inputs["attention_mask"])), with_kwargs=True
    )
    with torch.no_grad():
        states = model.states(model.vectors(cut.context, cut.context_mask), cut)
    hook.remove()
    positions, mask = seen[0]
    assert positions[0].tolist() == list(range(1 + 3 + cut.rest.shape[1]))
    assert torch.equal(mask, torch.cat([torch.ones(4, 4, dtype=torch.long), cut.rest_mask], dim=1))
    assert states.shape[1] == 1 + cut.rest.shape[1]


def test_the_reader_stays_and_the_distiller_learns_through_it(task):
    model, batch = make(task).train(), some(task)
    assert not model.reader.training
    before = {name: p.clone() for name, p in model.reader.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    token_nll(scored_logits(model, batch), targets_of(batch)).mean().backward()
    assert all(p.grad is None for p in model.reader.parameters())
    for part in (model.queries, *model.adapter.parameters(), *model.distiller.layers.parameters()):
        assert part.grad.abs().sum() > 0
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.reader.named_parameters())
    assert task.changed_teachers() == []


def test_vectors_start_as_large_as_embeddings(task):
    model = make(task).eval()
    cut = cut_rows(some(task), model.cuts(some(task)))
    with torch.no_grad():
        vectors = model.vectors(cut.context, cut.context_mask)
    size = model.reader.get_input_embeddings().weight.square().mean().sqrt().item()
    assert vectors.square().mean().sqrt().item() == pytest.approx(size, rel=0.5)


def test_a_context_is_read_once_for_all_its_queries(task):
    model = make(task).eval()
    read = []
    model.distiller.register_forward_hook(lambda _, __, output: read.append(len(output.last_hidden_state)))
    task.validate(model)  # two tasks of four queries: their labels, and two options each
    assert read == [2]
    with torch.no_grad():
        model.queries.add_(1.0)
    task.validate(model)
    assert read == [2, 2], "weights that changed make new vectors"
    cost = prefix_cost(model, task.split("val").sequences, task.device)
    assert cost.tasks_per_query == 2 / 8
    assert cost.shared_flops > cost.flops > 0


def test_remembered_vectors_are_those_that_gradients_are_taken_of(task):
    model, batch = make(task).eval(), some(task)
    cut = cut_rows(batch, model.cuts(batch))
    with torch.no_grad():
        model.vectors(cut.context, cut.context_mask)
        kept = model.vectors(cut.context, cut.context_mask)
    live = model.vectors(cut.context, cut.context_mask)
    assert live.requires_grad
    assert torch.allclose(kept, live, atol=1e-6)


def test_without_vectors_the_query_stands_alone(task):
    model, batch = make(task, distiller=False, vectors=0).eval(), some(task, 1)
    cut = cut_rows(batch, model.cuts(batch))
    start = torch.full((1, 1), task.tokenizer.bos_token_id)
    with torch.no_grad():
        alone = task.teacher()(input_ids=torch.cat([start, cut.rest], dim=1)).logits[:, :-1][cut.labels != IGNORE]
        assert torch.allclose(scored_logits(model, batch), alone, atol=1e-5)


def test_tuned_vectors_fit_each_context_and_no_other(task):
    model = make(task, distiller=False, vectors=4, tuning_steps=6, tuning_lr=0.1).eval()
    batch = some(task, 2)
    cut = cut_rows(batch, model.cuts(batch))
    fitted = model.tune(cut.context, cut.context_mask)
    alone = torch.cat([model.tune(cut.context[i : i + 1], cut.context_mask[i : i + 1]) for i in range(2)])
    assert torch.allclose(fitted, alone, atol=1e-3)
    assert not fitted.requires_grad
    assert all(p.grad is None for p in model.parameters())
    more = make(task, distiller=False, vectors=4, tuning_steps=0, tuning_lr=0.1).eval()
    assert fits(task, model, batch) < fits(task, more, batch)


def fits(task, model, batch) -> float:
    """NLL of the first demonstration's label as a query behind the vectors of its context."""
    separator, arrow = ids_of(task).values()
    cut = cut_rows(batch, model.cuts(batch))
    vectors, total = model.tune(cut.context, cut.context_mask), 0.0
    for i in range(len(batch)):
        ids = cut.context[i][cut.context_mask[i].bool()].tolist()
        first = [task.tokenizer.bos_token_id, *ids[: ids.index(separator)]]
        labels = [IGNORE] * (first.index(arrow) + 1) + first[first.index(arrow) + 1 :]
        row = TextBatch(*(torch.tensor([part]) for part in (first, [1] * len(first), labels)), torch.tensor([-1]))
        alone = cut_rows(row, torch.ones(1, dtype=torch.long))
        with torch.no_grad():
            states = model.states(vectors[i : i + 1], alone)
        scored = alone.labels != IGNORE
        logits = model.reader.get_output_embeddings()(states[:, :-1][scored])
        total += token_nll(logits, alone.labels[scored]).mean().item()
    return total


@pytest.mark.parametrize("settings", [{}, {"distiller": False, "vectors": 0}, {"distiller": False, "tuning_steps": 2}])
def test_it_is_saved_and_read_as_any_model(task, tmp_path, settings):
    model = make(task, **settings)
    task.save(model, tmp_path / "model")
    loaded = task.load(tmp_path / "model")
    assert task.validate(loaded) == task.validate(model)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "model")) is type(model)
    assert not any(p.requires_grad for p in loaded.reader.parameters())
