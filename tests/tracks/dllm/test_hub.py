"""Models and data sets of the Hugging Face hub, by way of local folders."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from kdbench.errors import JobError
from kdbench.registry import discover, load_method, method_manager, params_class
from kdbench.tracks.dllm.networks.hub import HubPredictor
from kdbench.tracks.dllm.task import DllmTask

SYMBOLS = ["[EOS]", "[MASK]", "[UNK]", *"0123456789+=#?\n. WhatisandT"]
ROWS = [
    {"question": f"What is {i}+{i + 1}?", "answer": f"{i}+{i + 1}={2 * i + 1}\n#### {2 * i + 1}"} for i in range(60)
]
ROWS[40] = {"question": "What is the sum of 40 and 41?", "answer": "81"}
ROWS[41] = {"question": "What is 41+42?", "answer": "41+42 is " + "8" * 30}


@pytest.fixture(scope="module")
def registry():
    return discover()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model written by ``save_pretrained`` with its tokenizer of characters, and problems as JSON lines."""
    folder = tmp_path_factory.mktemp("hub")
    words = {symbol: number for number, symbol in enumerate(dict.fromkeys(SYMBOLS))}
    plain = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = Split("", "isolated")
    plain.decoder = Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="[EOS]", pad_token="[EOS]", mask_token="[MASK]", unk_token="[UNK]"
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=64, initializer_range=0.4, **sizes)
    BertForMaskedLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return {"model": str(folder / "model"), "data": str(folder / "rows.jsonl")}


@pytest.fixture
def make(registry, folders, tmp_path):
    def task(phase="train", student=None, **teacher):
        usual = {"name": folders["model"], "architecture": "masked", "dtype": "float32", "mask_token": None}
        splits = {"train": "train[10:]", "val": "train[:5]", "test": "train[5:10]"}
        sizes = {"val": 3, "test": 4, "prompt": 24, "length": 20, "template": "plain"}
        overrides = {
            "data": {"path": folders["data"], "config": None, "splits": splits, **sizes},
            "teacher": {**usual, "trust_remote_code": False, **teacher},
            "student": student or {"lora": None},
            "decoding": {"block": 10},
            "recipe": {"precision": "float32", "batch_size": 4, "accumulate": 1},
            "limits": {"steps": 2},
            "requires": [],
        }
        made = DllmTask(
            registry.task("dllm/hf-problems", "paper", overrides), seed=0, method="dllm/probe", folder=tmp_path
        )
        made.phase = phase
        return made

    return task


def trained(registry, task, slug):
    found = registry.method(slug, "dllm")
    assert registry.supports(found, task.spec)
    module = load_method(found.path, found.module)
    return method_manager(module, registry).hook.train(task=task, params=params_class(module)())


@pytest.mark.parametrize(
    "method", ["seq", "oracle", "threshold", "sft", "kd_rand", "freedave", "dparallel", "learn2pd", "cd4lm"]
)
def test_methods_run_on_models_from_folders(registry, make, tmp_path, method):
    task = make()
    assert task.spec.problems() == []
    decoder = trained(registry, task, method)
    task.phase = "evaluate"
    scores = task.score(decoder)
    assert set(scores) == {metric.name for metric in task.spec.all_metrics()}
    task.save(decoder, tmp_path / "saved")
    prompts = task.split("test").prompts
    first, again = (task.decode(way, prompts) for way in (decoder, task.load(tmp_path / "saved")))
    assert torch.equal(first.tokens, again.tokens)
    if method in ("oracle", "freedave"):
        assert scores["agreement"] == 1


def test_adapters_are_merged_when_a_student_is_saved(registry, make, tmp_path):
    pytest.importorskip("peft")
    task = make(student={"lora": {"rank": 2, "targets": ["query", "value"]}})
    student = task.student()
    names = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    assert names
    assert all("lora" in name for name in names)
    decoder = trained(registry, task, "sft")
    task.phase = "evaluate"
    prompts = task.split("test").prompts
    before = task.decode(decoder, prompts)
    task.save(decoder, tmp_path / "saved")
    assert not list((tmp_path / "saved").rglob("adapter*"))
    assert torch.equal(task.decode(task.load(tmp_path / "saved"), prompts).tokens, before.tokens)


def test_prompts_are_padded_on_the_left_and_padding_says_nothing(make):
    task = make(phase="evaluate")
    split = task.split("test")
    lengths = [len(problem.prompt) + 1 for problem in split.problems]
    assert split.prompts.present.sum(1).tolist() == lengths
    assert split.prompts.present[:, -1].all()
    assert task.kind.text(split.answer[0].tolist()) == split.problems[0].response
    ids = torch.cat([split.prompts.ids, split.answer], 1)
    there = torch.cat([split.prompts.present, torch.ones_like(split.answer, dtype=torch.bool)], 1)
    other = torch.where(there, ids, 5)
    net = task.teacher()
    torch.testing.assert_close(net(ids, there)[there], net(other, there)[there])


def test_a_model_that_predicts_the_next_token_is_shifted(make):
    plain, shifted = make().teacher(), make(shift=True).teacher()
    ids = torch.arange(3, 13)[None]
    assert isinstance(plain, HubPredictor)
    torch.testing.assert_close(shifted(ids)[:, 1:], plain(ids)[:, :-1])
    assert (plain(ids)[..., plain.mask] == -torch.inf).all()


def test_a_model_whose_mask_nobody_names_is_refused(make, folders, tmp_path):
    copy = shutil.copytree(folders["model"], tmp_path / "copy")
    path = copy / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("mask_token")
    path.write_text(json.dumps(config))
    with pytest.raises(JobError, match="names no mask: say its id in teacher.mask_token"):
        make(name=str(copy)).teacher()
    assert make(name=str(copy), mask_token=1).teacher().mask == 1


def test_what_does_not_fit_is_left_out_and_nothing_is_an_error(make, caplog):
    task = make()
    assert task.split("train").answer.shape[1] == 20
    assert len(task.split("train")) == 48
    none = make()
    none.spec = none.spec.model_copy(update={"data": none.spec.data.model_copy(update={"prompt": 4})})
    with pytest.raises(JobError, match="no train item of .* fits 4 tokens of prompt"):
        none.split("train")


def test_folders_that_are_not_there_are_said(make):
    spec = make(name="./nowhere").spec
    assert [problem.place for problem in spec.problems()] == ["task dllm/hf-problems@paper: teacher.name"]
