"""The task as methods see it: losses, teacher, meters, determinism, test data, artifacts."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kdbench.cache import Cache
from kdbench.errors import ArtifactError, JobError, TestDataError
from kdbench.losses.divergences import fkl
from kdbench.losses.tokens import IGNORE
from kdbench.tracks.llm.networks import models
from kdbench.tracks.llm.spec import Net
from kdbench.training.distill import distillation_loss

NAMES = ("instruct", "text", "classify-reviews")


def weights(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("name", [*NAMES, "classify-docstrings", "text-noisy"])
def test_a_job_is_repeatable_and_gives_the_official_metrics(make_task, name: str):
    def run():
        task = make_task(name)
        student = task.student()
        task.fit(student, lambda model, batch: task.nll(model, batch).mean())
        task.phase = "evaluate"
        return weights(student), task.scores(student)

    (first, scores), (second, again) = run(), run()
    assert torch.equal(first, second)
    assert scores.metrics == again.metrics
    task = make_task(name)
    assert list(scores.metrics) == [metric.name for metric in task.spec.all_metrics()]
    task.phase = "evaluate"
    for values in scores.examples.values():
        assert len(values) == len(task.split("test"))
    headline = task.spec.headline.name
    if headline in scores.examples:
        assert scores.examples[headline].mean() == pytest.approx(scores.metrics[headline])


def test_seeds_and_methods(make_task):
    a, b = make_task("instruct", seed=0), make_task("instruct", seed=1)
    assert torch.equal(weights(a.student()), weights(b.student())), (
        "the pre-trained initialisation is one for all seeds"
    )
    first, second = next(iter(a.train_loader())), next(iter(b.train_loader()))
    assert first.index.tolist() != second.index.tolist()
    other = make_task("instruct", seed=0, method="llm/other")
    assert next(iter(other.train_loader())).index.tolist() == first.index.tolist(), "methods are paired"
    assert not torch.equal(weights(make_task("text", seed=0).student()), weights(make_task("text", seed=1).student()))


def test_epochs_differ_and_cover_the_data(make_task):
    loader = make_task("instruct").train_loader()
    first, second = ([i for batch in loader for i in batch.index.tolist()] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(64))
    assert first != second


@pytest.mark.parametrize("name", NAMES)
def test_test_data_are_out_of_reach_in_train(make_task, name: str):
    task = make_task(name)
    student = task.student()
    for reach in (
        lambda: task.score(student),
        lambda: task.split("test"),
        lambda: task.corpus("test"),
        lambda: task.prompts("test", 2, task.generator("p")),
        lambda: task.harness(student, ["facts"]),
        lambda: task.divergences(student, "test"),
    ):
        with pytest.raises((TestDataError, JobError)) as caught:
            reach()
        assert "test" in str(caught.value)
    assert task.validate(student)


def test_tokens_are_student_and_teacher_on_the_shifted_positions(make_task):
    task = make_task("instruct")
    student, batch = task.student(), next(iter(task.train_loader()))
    tokens = task.tokens(student, batch)
    labels = batch.labels[:, 1:]
    scored = labels != IGNORE
    whole = student(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1][scored]
    assert torch.allclose(tokens.student, whole, atol=1e-5)
    assert torch.allclose(tokens.teacher, task.teacher_logits(batch)[:, :-1][scored], atol=1e-5)
    assert torch.equal(tokens.targets, labels[scored])
    assert torch.equal(tokens.sequence, scored.nonzero()[:, 0])
    assert torch.allclose(
        tokens.nll, torch.nn.functional.cross_entropy(whole, tokens.targets, reduction="none"), atol=1e-5
    )
    assert torch.allclose(task.nll(student, batch), tokens.nll)
    # the mean NLL is what transformers itself computes as the loss
    reference = student(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    assert tokens.nll.mean().item() == pytest.approx(reference.item(), abs=1e-5)
    assert tokens.student.requires_grad
    assert not tokens.teacher.requires_grad
    assert all(p.grad is None and not p.requires_grad for p in task.teacher().parameters())


def test_class_tokens_have_one_position_per_row(make_task):
    task = make_task("classify-reviews")
    batch = next(iter(task.train_loader()))
    tokens = task.tokens(task.student(), batch)
    assert tokens.student.shape == tokens.teacher.shape == (len(batch), 2)
    assert torch.equal(tokens.targets, batch.labels)
    embedding, logits = models.penultimate(task.teacher(), batch)
    assert torch.allclose(logits, tokens.teacher, atol=1e-5)
    assert embedding.shape == (len(batch), 32)


def test_what_a_method_costs_is_metered_and_evaluation_is_not(make_task):
    task = make_task("instruct")
    student, batch = task.student(), next(iter(task.train_loader()))
    task.tokens(student, batch)
    assert task.budget.report() == {"teacher_queries": 4}
    task.teacher_logits(batch)
    assert task.budget.spent["teacher_queries"] == 8
    rollout = task.rollout(
        student, task.prompts("train", 3, task.generator("p")), max_new=5, generator=task.generator("g")
    )
    assert task.budget.spent["generated_tokens"] == int(rollout.scored.sum())
    task.rollout(task.teacher(), task.prompts("train", 3, task.generator("p")), max_new=5, temperature=0)
    assert task.budget.spent["teacher_queries"] == 11
    spent = task.budget.report()
    task.phase = "evaluate"
    task.score(student)
    task.divergences(student, "test")
    assert task.budget.report() == spent


def test_divergence_from_itself_is_zero(make_task):
    task = make_task("instruct")
    values = task.divergences(task.teacher())
    assert values["kl_teacher_student"] == pytest.approx(0, abs=1e-6)
    assert values["kl_student_teacher"] == pytest.approx(0, abs=1e-6)
    other = task.divergences(task.student())
    assert other["kl_teacher_student"] > 0 < other["kl_student_teacher"]


def test_the_teacher_is_what_half_precision_gives_back(make_task):
    for parameter in make_task("instruct").teacher().parameters():
        assert torch.equal(parameter, parameter.half().float())


def test_first_weights_are_as_large_as_they_are_asked_to_be(make_task):
    tokenizer = make_task("text").tokenizer
    for family in ("llama", "gpt2"):
        usual = Net(layers=1, width=16, family=family, tied=True)
        large = usual.model_copy(update={"embedding": 0.3, "spread": 0.1})
        assert not {"embedding", "spread"} & set(usual.model_dump(mode="json")), "networks keep what they are found by"
        assert large.model_dump(mode="json")["embedding"] == 0.3
        assert large.model_dump(mode="json")["spread"] == 0.1
        made = []
        for net in (usual, large):
            torch.manual_seed(0)
            made.append(models.build(net, tokenizer))
        table, larger = (model.get_input_embeddings().weight for model in made)
        assert torch.allclose(15 * table, larger)
        assert made[1].get_output_embeddings().weight is larger
        others = [[p for p in model.parameters() if p.dim() == 2 and p.shape != table.shape] for model in made]
        assert others[0]
        assert all(torch.allclose(5 * a, b) for a, b in zip(*others, strict=True))


def test_another_tokenizer_is_scored_on_the_same_text(make_task):
    task = make_task("text")
    tokenizer = task.local_tokenizer("bytes")
    student = task.new_student(Net(family="gpt2", layers=1, width=16, heads=2), tokenizer)
    sequences = task.kind.encode_rows(task.split("train").rows, tokenizer)
    task.fit(student, lambda model, batch: task.nll(model, batch).mean(), loader=task.loader(sequences))
    assert task.validate(student)["loss"] > 0
    task.phase = "evaluate"
    metrics = task.score(student)
    # a nearly uniform model over 259 tokens spends log2(259) bits on each byte, whatever the tokens are
    assert metrics["bits_per_byte"] == pytest.approx(8.0, abs=0.3)
    with pytest.raises(JobError, match="tokenizer"):
        task.divergences(student, "test")


def test_artifacts_can_be_read_by_the_task_and_by_transformers(make_task, tmp_path):
    task = make_task("instruct")
    student = task.student()
    task.save(student, tmp_path / "model")
    loaded = task.load(tmp_path / "model")
    assert torch.equal(weights(loaded), weights(student))
    assert torch.equal(weights(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), weights(student))
    text = "### Instruction:\nAdd 3 and 4."
    reader = AutoTokenizer.from_pretrained(tmp_path / "model")
    plain = reader(text, add_special_tokens=False)["input_ids"]
    assert plain == task.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_an_adopted_tokenizer_is_saved_with_its_model(make_task, tmp_path):
    task = make_task("text")
    tokenizer = task.local_tokenizer("bytes")
    student = task.new_student(Net(layers=1, width=16, heads=2), tokenizer)
    task.save(student, tmp_path / "model")
    loaded = task.load(tmp_path / "model")
    assert len(task.tokenizer_of(loaded)) == len(tokenizer)
    assert task.validate(loaded) == task.validate(student)


@pytest.mark.parametrize("wrong", [None, "text", torch.nn.Linear(2, 2)])
def test_what_is_no_language_model_is_refused(make_task, wrong):
    with pytest.raises(ArtifactError):
        make_task("instruct").check(wrong)


def test_training_helps_and_the_gap_is_measured_once(make_task):
    task = make_task(
        "text",
        limits={"steps": 2},
        gate={"exact_match": None, "perplexity": 0.99},
        teacher={"stages": [{"objective": "lm", "steps": 60, "batch_size": 8, "lr": 1e-2}]},
    )
    values = task.gap()
    assert values["teacher_perplexity"] < 0.9 * values["student_perplexity"]
    assert task.gap() == values
    assert task.budget.report() == {}, "the probe is no cost of the job"


def test_a_teacher_that_is_no_better_refuses_a_board(make_task):
    weak = {"stages": [{"objective": "lm", "steps": 1, "batch_size": 2, "lr": 1e-5}]}
    task = make_task("text", limits={"steps": 3}, gate={"exact_match": None, "perplexity": 0.85}, teacher=weak)
    with pytest.raises(TestDataError):
        task.board_problems()
    task.phase = "evaluate"
    (reason,) = task.board_problems()
    assert "perplexity: teacher" in reason
    assert "more than 0.85" in reason
    assert task.budget.report() == {}
    easy = make_task("text", limits={"steps": 3}, gate={"exact_match": None, "perplexity": 100.0}, teacher=weak)
    easy.phase = "evaluate"
    assert easy.board_problems() == []


@pytest.mark.parametrize("name", ["instruct", "text"])
def test_all_that_prepare_makes_is_listed_before(make_task, tmp_path, name: str):
    changes = {"limits": {"steps": 2}, "gate": {}, "outputs": {"k": 8}} if name == "text" else {"gate": {}}
    task = make_task(name, cache=Cache(tmp_path / "cache"), **changes)
    needs = task.spec.teacher_needs()
    assert {kind for kind, _, _ in needs} == {"teacher", "gap"}
    assert len(needs) == (3 if name == "instruct" else 2), "the initial student is one of them where it is trained"
    assert not any(task.cache.find(kind, key) for kind, key, _ in needs)
    task.prepare()
    assert all(task.cache.find(kind, key) for kind, key, _ in needs)


def test_unseen_families_are_scored_by_their_references(make_task):
    task = make_task("instruct")
    student = task.student()
    task.phase = "evaluate"
    metrics = task.score(student)
    tokenizer, losses, hits = task.tokenizer, [], []
    for item in task.split("ood").rows:
        ids = [tokenizer.bos_token_id, *tokenizer(item.prompt, add_special_tokens=False)["input_ids"]]
        answer = [*tokenizer(item.response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            log_q = student(input_ids=torch.tensor([ids + answer])).logits[0].log_softmax(-1)
        for place, token in enumerate(answer, start=len(ids) - 1):
            losses.append(-log_q[place, token].item())
            hits.append(int(log_q[place].argmax()) == token)
    assert metrics["loss_ood"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert metrics["token_accuracy_ood"] == pytest.approx(sum(hits) / len(hits))


def test_harness_scores_a_model_on_local_files(make_task):
    task = make_task("text", evaluation={"harness_items": 8})
    student = task.student()
    task.phase = "evaluate"
    values = task.harness(student, ["facts", "cloze", "arithmetic"])
    assert set(values) >= {
        "harness/facts/acc",
        "harness/cloze/acc",
        "harness/cloze/perplexity",
        "harness/arithmetic/exact_match",
    }
    assert all(0 <= values[name] <= 1 for name in values if not name.endswith("perplexity"))


def test_harness_tasks_of_a_folder(make_task, tmp_path):
    rows = [{"question": f"{i} plus one is", "answer": f" {i + 1}"} for i in range(6)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    description = {
        "task": "plus_one",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "sums.jsonl")}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "plus_one.yaml").write_text(json.dumps(description))
    task = make_task("text", evaluation={"harness_folder": str(tmp_path), "harness_items": 4})
    student = task.student()
    task.phase = "evaluate"
    values = task.harness(student, ["plus_one", "arithmetic"])
    assert 0 <= values["harness/plus_one/acc"] <= 1
    assert set(values) == {"harness/plus_one/acc", "harness/arithmetic/exact_match"}


def test_a_task_that_the_harness_does_not_know_is_named(make_task, monkeypatch):
    from kdbench.tracks.llm import harness

    class Manager:
        def __init__(self, include_path, include_defaults):
            self.all_tasks = ["hellaswag", "winogrande"] if include_defaults else []

    monkeypatch.setattr(harness, "TaskManager", Manager)  # reading the real list takes seconds
    task = make_task("text")
    student = task.student()
    task.phase = "evaluate"
    with pytest.raises(JobError, match="no task 'helaswag'; did you mean hellaswag"):
        task.harness(student, ["helaswag"])


@pytest.mark.full
def test_a_task_of_the_hub_is_found_and_its_data_asked_for(make_task):
    task = make_task("text", evaluation={"harness_items": 2})
    student = task.student()
    task.phase = "evaluate"
    with pytest.raises(JobError, match="cannot load the data of hellaswag"):
        task.harness(student, ["hellaswag"])


def test_harness_log_likelihoods_are_those_of_the_model(make_task):
    from types import SimpleNamespace

    from kdbench.tracks.llm.harness import Adapter

    task = make_task("text")
    student = task.student().eval()
    adapter = Adapter(student, task.tokenizer, 2, 8)
    [(value, greedy)] = adapter.loglikelihood([SimpleNamespace(args=("12 + 7 =", " 19"))])
    start = [task.tokenizer.bos_token_id, *task.tokenizer("12 + 7 =", add_special_tokens=False)["input_ids"]]
    end = task.tokenizer(" 19", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        log_q = student(input_ids=torch.tensor([start + end])).logits[0].log_softmax(-1)
    places = range(len(start) - 1, len(start) + len(end) - 1)
    assert value == pytest.approx(sum(log_q[i, token].item() for i, token in zip(places, end, strict=True)), abs=1e-4)
    assert greedy == all(int(log_q[i].argmax()) == token for i, token in zip(places, end, strict=True))


def test_the_nll_takes_its_pass_over_the_logits_only_where_something_reads_it(make_task, monkeypatch):
    task = make_task("text")
    batch, student = next(iter(task.train_loader())), task.student()
    passes = []
    made = models.token_nll
    monkeypatch.setattr(models, "token_nll", lambda *given: passes.append(1) or made(*given))
    divergence_alone = distillation_loss(task, fkl, kd_ratio=1.0)(student, batch)
    assert set(divergence_alone) == {"kd"}
    assert passes == []
    assert set(distillation_loss(task, fkl, kd_ratio=0.5)(student, batch)) == {"kd", "ce"}
    tokens = task.tokens(student, batch)
    assert tokens.nll is tokens.nll
    assert len(passes) == 2
