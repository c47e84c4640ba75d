"""A local teacher that writes, and the data of the task that it is for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from kdbench.errors import JobError, TestDataError
from kdbench.tracks.llm.blocks.authors import (
    LocalAuthor,
    Request,
    author_network,
    class_nll,
    pool_rows,
    sources,
)
from kdbench.tracks.llm.blocks.guidance import Mistake


@pytest.fixture
def task(make_task):
    return make_task("classify-seeds")


@pytest.fixture
def author(task):
    return LocalAuthor(task, author_network(task), batch_size=4)


def request(task, quotas, **rest) -> Request:
    return Request(task.class_names, quotas, **rest)


# --- the data ---------------------------------------------------------------------------------------------------------


def test_training_has_a_few_of_each_class_and_the_pool_all(task):
    seeds, pool = task.split("train"), task._data.split("pool")
    assert Counter(row.label for row in seeds.rows) == dict.fromkeys(range(4), 2)
    assert len(pool) == 64
    known = {row.text for row in pool.rows}
    assert {row.text for row in seeds.rows} < known
    assert torch.equal(task._data.stage_rows("classify").ids, pool.sequences.ids)
    held_out = {row.text for name in ("val", "test") for row in task._data.split(name).rows}
    assert not known & held_out


def test_the_pool_is_out_of_reach_in_training(task):
    for name in ("pool", "test"):
        with pytest.raises(TestDataError):
            task.split(name)


def test_more_seeds_than_there_are_texts_are_refused(make_task):
    with pytest.raises(JobError, match="has fewer"):
        make_task("classify-seeds", data={"seeds": 60}).split("train")


# --- the author -------------------------------------------------------------------------------------------------------


def test_rows_put_a_similar_text_of_the_class_before_most_texts(task):
    examples = task._data.split("pool").rows
    rows = pool_rows(examples, task.class_names, task.tokenizer, 16)
    texts = [task.tokenizer.decode(row[:length]) for row, length in zip(rows.ids, rows.lengths, strict=True)]
    pairs = 0
    for example, text in zip(examples, texts, strict=True):
        head = f"### {task.class_names[example.label]}\n"
        assert text.count(head) == text.count("<eos>") == text.count("### ")
        pairs += text.count(head) == 2
        assert text.split(head)[-1].removesuffix("<eos>") == task.tokenizer.decode(
            task.tokenizer(example.text)["input_ids"][:16]
        )
    assert 0.4 < pairs / len(examples) < 0.9


def test_hard_negatives_come_first_then_mistakes_then_examples():
    found = sources(
        Request(
            ("a", "b"),
            (0, 9),
            examples=(("e", 1), ("other", 0)),
            mistakes=(Mistake("m", 1, 0, 0.5), Mistake("h", 1, 0, 0.9)),
            hard_negatives=(Mistake("h", 1, 0, 0.9), Mistake("not mine", 0, 1, 0.9)),
        ),
        1,
        6,
    )
    assert found == [("h", 1), ("m", 1), ("e", 1), ("", 1), ("h", 1), ("m", 1)]


def test_quotas_are_met_and_metered(task, author):
    written = author.generate(request(task, (3, 0, 1, 2)))
    assert Counter(label for _, label in written) == {0: 3, 2: 1, 3: 2}
    assert task.budget.spent["teacher_queries"] == 6
    assert 0 < task.budget.spent["generated_tokens"] <= 6 * task.spec.data.length
    assert task.budget.spent["flops"] > 0


def test_what_is_written_depends_on_the_hard_negatives(task, author):
    def write(**rest):
        author.generator.manual_seed(0)
        return author.generate(request(task, (2, 0, 0, 0), **rest)), list(author.used)

    plain, used = write()
    assert used == [("", 0), ("", 0)]
    told, used = write(hard_negatives=(Mistake("Close the connection to the server.", 0, 1, 0.9),))
    assert used == [("Close the connection to the server.", 0), ("", 0)]
    assert told[0] != plain[0]


def test_the_author_is_made_with_the_task_and_once(task, make_task, author):
    need = ("teacher", task.spec.author_identity(), f"author of {task.spec.name}")
    assert need in task.spec.teacher_needs()
    assert task.cache.find(*need[:2]) is not None
    again = author_network(task)
    other = author_network(make_task("classify-seeds", data={"author": {"steps": 5}}))
    same, different = (
        all(torch.equal(a, b) for a, b in zip(net.parameters(), author.network.parameters(), strict=True))
        for net in (again, other)
    )
    assert same
    assert not different
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_the_class_of_a_text_is_that_under_which_it_is_most_probable(task, author):
    texts = [row.text for row in task.split("val").rows[:3]]
    found, read = class_nll(task, author.network, texts, task.class_names)
    tokens = [len(task.tokenizer(text)["input_ids"][: task.spec.data.length]) + 2 for text in texts]
    assert read >= 4 * sum(tokens)
    expected = []
    for text in texts:
        nll = []
        for name in task.class_names:
            head = task.tokenizer(f"### {name}\n")["input_ids"]
            body = task.tokenizer(text)["input_ids"][: task.spec.data.length]
            ids = torch.tensor([[task.tokenizer.bos_token_id, *head, *body, task.tokenizer.eos_token_id]])
            logp = author.network(input_ids=ids).logits.log_softmax(-1)[0, len(head) : -1]
            nll.append(-logp.gather(-1, ids[0, len(head) + 1 :, None]).sum().item())
        expected.append(nll)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    task.budget.restore({})
    ranked = author.probable(texts, task.class_names, 2)
    assert ranked == [tuple(np.argsort(nll)[:2]) for nll in expected]
    assert task.budget.spent["teacher_queries"] == len(texts)


def test_preparing_the_task_makes_the_author(make_task, tmp_path):
    task = make_task("classify-seeds", data={"author": {"steps": 3}})
    task.prepare()
    assert all(task.cache.find(kind, key) is not None for kind, key, _ in task.spec.teacher_needs())
