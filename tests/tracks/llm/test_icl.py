"""Few-shot tasks: splits that share no rule, labels that follow the rule, the choice among the classes."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from kdbench.errors import UsageError
from kdbench.tracks.llm.blocks.demonstrations import flipped, full_cost, inverted, permuted
from kdbench.tracks.llm.data import icl
from kdbench.tracks.llm.data.specs import IclData
from kdbench.tracks.llm.kinds.icl import correct, likelihoods

DATA = IclData(train=40, val=3, test=5, queries=6, stories=6)


def rng():
    import numpy as np

    return np.random.default_rng(0)


def kind_of(word: str) -> str:
    return next(kind for lexicon in icl.SIDES for kind, members in lexicon.items() if word in members)


def test_words_are_of_one_kind_and_no_label_is_a_word():
    words = [word for lexicon in icl.SIDES for members in lexicon.values() for word in members]
    assert len(words) == len(set(words))
    assert not set(words) & set(icl.LABELS)
    assert len(icl.LABELS) == len(set(icl.LABELS))


@pytest.mark.parametrize(("classes", "kinds", "count"), [(2, 1, 28), (2, 2, 210), (3, 2, 420), (4, 2, 105)])
def test_rules_are_all_there_and_in_one_split_each(classes, kinds, count):
    found = icl.rules(classes, kinds)
    names = [rule.name for rules in found.values() for rule in rules]
    assert len(names) == len(set(names)) == 2 * count
    assert len(found["val"]) == len(found["test"]) == 2 * count // 10
    for rule in found["train"]:
        members = [kind for group in rule.kinds for kind in group]
        assert len(members) == len(set(members)) == classes * kinds


def test_splits_share_no_rule_and_are_the_same_again():
    rows = {split: icl.episodes(DATA, split) for split in icl.SPLITS}
    rules = {split: {row.rule for row in made} for split, made in rows.items()}
    assert not rules["train"] & rules["test"]
    assert not rules["train"] & rules["val"]
    assert not rules["val"] & rules["test"]
    assert rows["test"] == icl.episodes(DATA.model_copy(update={"train": 7}), "test")
    assert [len(rows[split]) for split in icl.SPLITS] == [40, 18, 30]
    assert icl.Episode.from_json(rows["val"][0].to_json()) == rows["val"][0]


def test_labels_follow_the_rule_and_queries_are_new():
    for row in icl.episodes(DATA, "test"):
        side = row.rule.startswith("noun")
        groups = [group.split() for group in row.rule.partition(": ")[2].split(" | ")]
        for text, label in (*row.demonstrations, (row.query, row.label)):
            assert kind_of(text.split()[side]) in groups[row.options.index(label)]
        assert row.query not in dict(row.demonstrations)
        labels = [label for _, label in row.demonstrations]
        assert labels.count(row.options[0]) == labels.count(row.options[1]) == 4


def test_queries_of_a_task_share_their_demonstrations_and_are_balanced():
    rows = icl.episodes(DATA, "test")
    for number in range(5):
        of_task = [row for row in rows if row.task == number]
        assert len({row.demonstrations for row in of_task}) == 1
        assert len({row.query for row in of_task}) == 6
        assert sum(row.label == row.options[0] for row in of_task) == 3


def test_training_tasks_show_some_demonstrations_again_and_others_none():
    def again(made):
        return sum(len(row.demonstrations) - len(set(row.demonstrations)) for row in made)

    assert again(icl.episodes(DATA, "test")) == again(icl.episodes(DATA, "val")) == 0
    assert again(icl.episodes(DATA.model_copy(update={"repeats": 0.0}), "train")) == 0
    assert again(icl.episodes(DATA, "train")) / (40 * 7) == pytest.approx(0.3, abs=0.1)


def test_the_end_of_a_story_says_nothing_that_its_beginning_does_not():
    for story in icl.stories(DATA):
        sentences = [sentence.strip() for sentence in story.split(" .") if sentence]
        assert len(sentences) == DATA.sentences
        likes = {s.split()[0]: s.split()[-1] for s in sentences[:6] if " likes " in s}
        for sentence in sentences[6:]:
            if " takes " in sentence:
                assert kind_of(sentence.split()[-1]) == likes[sentence.split()[0]]
            else:
                assert sentence in sentences[:6]


def test_exercises_say_two_demonstrations_again():
    for stage, arrow in (("echo", False), ("recall", True), ("hint", True)):
        made = icl.exercises(DATA, stage)
        assert made == icl.exercises(DATA, stage)
        assert len(made) == DATA.train
        assert all(((icl.ARROW, False) in each.parts) == arrow for each in made)
        changed = 0
        for each in made:
            first, again = each.shown[:2], {label: (a, b) for a, b, label in each.shown[2:]}
            assert all(len(set(column)) == 2 for column in zip(*first, strict=True))
            differing = [sum(x != y for x, y in zip(again[label], (a, b), strict=True)) for a, b, label in first]
            assert max(differing) <= 1, "one of the two words still tells the label"
            changed += sum(differing)
        assert changed / (2 * len(made)) == pytest.approx(0.7 if stage == "hint" else 0.0, abs=0.15)


def test_kinds_belong_to_one_class():
    with pytest.raises(ValidationError, match="at most 8"):
        IclData(classes=3, kinds=3)


def test_changed_demonstrations():
    rows = icl.episodes(DATA, "test")
    again = permuted(rows, rng())
    assert all(sorted(a.demonstrations) == sorted(b.demonstrations) for a, b in zip(rows, again, strict=True))
    assert [row.demonstrations for row in again] != [row.demonstrations for row in rows]
    wrong = flipped(rows, 0.25, rng())
    for a, b in zip(rows, wrong, strict=True):
        assert sum(x != y for x, y in zip(a.demonstrations, b.demonstrations, strict=True)) == 2
        assert (a.query, a.label) == (b.query, b.label)
    for made in (again, wrong):
        assert len({row.demonstrations for row in made}) == 5, "queries of a task share them"
    for a, b in zip(rows, inverted(rows), strict=True):
        assert all(x[1] != y[1] for x, y in zip(a.demonstrations, b.demonstrations, strict=True))
        assert a.label != b.label in a.options
    assert flipped(rows, 1.0, rng())[0].demonstrations == inverted(rows)[0].demonstrations


# --- the task ---------------------------------------------------------------------------------------------------------


def test_likelihoods_are_means_over_the_tokens_of_a_name(make_task):
    task = make_task("icl")
    model, rows = task.student().eval(), task.split("val").rows
    found = likelihoods(task, model, rows)
    start = task.tokenizer.bos_token_id
    for i, row in enumerate(rows[:3]):
        for j, option in enumerate(row.options):
            prompt, name = (
                task.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (row.prompt, f" {option}")
            )
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[start, *prompt, *name]])).logits[0].log_softmax(dim=-1)
            mine = [logits[len(prompt) + k, token].item() for k, token in enumerate(name)]
            assert found[i, j].item() == pytest.approx(sum(mine) / len(mine), abs=1e-4)
    right = correct(task, model, rows)
    best = found.argmax(dim=1).tolist()
    assert right.tolist() == [float(row.options[k] == row.label) for row, k in zip(rows, best, strict=True)]
    assert task.validate(model)["accuracy"] == right.mean()


def test_the_label_alone_is_scored_and_pre_training_reads_everything(make_task):
    task = make_task("icl")
    split = task.split("train")
    batch = split.sequences.batch(torch.arange(4))
    for i, row in enumerate(split.rows[:4]):
        told = task.tokenizer.decode(batch.labels[i][batch.labels[i] >= 0], skip_special_tokens=True)
        assert told == row.response
    read = task._data.stage_rows("lm")
    assert len(read) == 64 + 32
    assert int(read.starts.max()) == 1


@pytest.mark.parametrize("stage", ["echo", "recall", "hint", "labels"])
def test_stages_score_the_words_that_can_be_looked_up(make_task, stage):
    task = make_task("icl")
    rows, split = task._data.stage_rows(stage), task.split("train")
    assert len(rows) == len(split) == 64
    batch = rows.batch(torch.arange(8))
    assert torch.equal(batch.labels[batch.labels >= 0], batch.input_ids[batch.labels >= 0])
    if stage == "labels":
        wanted = [[*(label for _, label in row.demonstrations), row.label] for row in split.rows[:8]]
    else:
        made = icl.exercises(task.spec.data, stage)[:8]
        wanted = [[word for _, *pair in each.shown[2:] for word in pair[stage == "hint" :]] for each in made]
    for ids, words in zip(batch.labels, wanted, strict=True):
        assert task.tokenizer.decode(ids[ids >= 0]).split() == words
    if stage == "labels":
        assert ["".join(text for text, _ in row.parts) for row in split.rows] == [row.text for row in split.rows]


def test_a_tied_teacher_with_larger_first_weights_is_read_back_as_it_was_trained(make_task):
    stages = [{"objective": stage, "steps": 2, "batch_size": 4} for stage in ("echo", "recall", "hint", "labels", "lm")]
    task = make_task("icl", teacher={"tied": True, "embedding": 0.2, "spread": 0.08, "stages": stages})
    model = task.teacher()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(0.2, rel=0.1)


def test_other_data_have_no_exercises(make_spec):
    stages = {"stages": [{"objective": "recall", "steps": 2}]}
    with pytest.raises(UsageError, match="needs data of kind 'icl'"):
        make_spec("text", teacher=stages)


def test_a_context_costs_what_it_has_tokens(make_task):
    task = make_task("icl")
    sequences, model = task.split("val").sequences, task.student()
    cost = full_cost(model, sequences, task.device)
    assert cost.context_tokens == sequences.lengths.float().mean()
    lengths = sequences.lengths.tolist()
    one, two, short = (
        full_cost(model, sequences.rows(torch.tensor(rows)), task.device)
        for rows in ([lengths.index(max(lengths))], [lengths.index(max(lengths))] * 2, [lengths.index(min(lengths))])
    )
    assert one.flops == two.flops == one.shared_flops
    assert one.context_tokens > short.context_tokens
    assert one.flops > short.flops
