"""Models and data of the Hugging Face hub, by way of local folders."""

from __future__ import annotations

import json

import pytest
import torch

from kdbench.registry import discover, load_method, method_manager, params_class
from kdbench.tracks.decoding.decoders.base import Decoder
from kdbench.tracks.decoding.task import DecodingTask
from kdbench.tracks.llm.networks import models, tokenizers
from kdbench.tracks.llm.spec import Net

ROWS = [{"question": f"What is {i} and {i + 1}?", "answer": f"{i}+{i + 1}\n#### {2 * i + 1}"} for i in range(40)]


@pytest.fixture(scope="module")
def registry():
    return discover()


@pytest.fixture
def folders(tmp_path):
    """Target and draft of different families, written by ``save_pretrained``, and problems as JSON lines."""
    tokenizer = tokenizers.wrap(tokenizers.characters())
    made = {}
    for role, net in (
        ("teacher", Net(family="llama", layers=2, width=32, heads=2, mlp=96, positions=128)),
        ("student", Net(family="gpt2", layers=1, width=16, heads=2, positions=128)),
    ):
        torch.manual_seed(0)
        made[role] = str(tmp_path / role)
        models.build(net, tokenizer).save_pretrained(made[role])
        tokenizer.save_pretrained(made[role])
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return made | {"data": str(tmp_path / "rows.jsonl")}


@pytest.fixture
def make(registry, folders, tmp_path):
    def task(**student) -> DecodingTask:
        both = {"dtype": "float32", "gradient_checkpointing": False}
        overrides = {
            "data": {"path": folders["data"], "config": None, "val": 2, "test": 3, "length": 96},
            "teacher": {"name": folders["teacher"], "dtype": "float32"},
            "student": {"name": folders["student"], **both, **student},
            "evaluation": {"max_new": 12, "timed": 1, "gammas": [2], "gamma": 2},
            "recipe": {"precision": "float32", "batch_size": 4, "accumulate": 1},
            "limits": {"steps": 2},
        }
        spec = registry.task("decoding/hf-problems", "paper", overrides)
        return DecodingTask(spec, seed=0, method="decoding/probe", folder=tmp_path)

    return task


def trained(registry, task, slug):
    found = registry.method(slug, "decoding")
    assert registry.supports(found, task.spec)
    module = load_method(found.path, found.module)
    hook = method_manager(module, registry).hook.train
    return hook(task=task, params=params_class(module)())


@pytest.mark.parametrize("method", ["ar", "sd_init", "kd_fkl", "ngram_draft", "adaspec", "jacobi_vanilla"])
def test_methods_run_on_models_from_folders(registry, make, tmp_path, method):
    task = make()
    assert task.spec.problems() == []
    decoder = trained(registry, task, method)
    task.phase = "evaluate"
    scores = task.score(decoder)
    assert set(scores) == {metric.name for metric in task.spec.all_metrics()}
    assert scores["lossless"] == 1.0
    task.save(decoder, tmp_path / "saved")
    again = task.load(tmp_path / "saved")
    assert isinstance(again, Decoder)
    prompts = task.test_prompts()
    assert task.decode(again, prompts).forwards == task.decode(decoder, prompts).forwards


def test_adapters_of_a_draft_are_merged_when_it_is_saved(registry, make, tmp_path):
    pytest.importorskip("peft")
    task = make(lora={"rank": 2, "targets": ["c_attn"]})
    decoder = trained(registry, task, "kd_fkl")
    task.phase = "evaluate"
    before = task.decode(decoder, task.test_prompts())
    task.save(decoder, tmp_path / "saved")
    assert not list((tmp_path / "saved").rglob("adapter*"))
    after = task.decode(task.load(tmp_path / "saved"), task.test_prompts())
    assert (after.tokens, after.forwards) == (before.tokens, before.forwards)
