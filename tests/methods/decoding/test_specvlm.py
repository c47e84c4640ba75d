"""SpecVLM: what is trained on, what is stored, and what its variants change."""

from __future__ import annotations

import json

import pytest
import torch

from kdbench.tracks.decoding.blocks.studies import declines, tree_study
from kdbench.tracks.decoding.decoders.tree import TreeDecoder
from kdbench.tracks.decoding.task import DecodingTask
from kdbench_methods.decoding import specvlm


@pytest.fixture
def task(registry, tmp_path):
    spec = registry.task("decoding/scenes", "smoke", {"limits": {"steps": 3}})
    return DecodingTask(spec, seed=0, method="decoding/specvlm", folder=tmp_path)


def files(folder):
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def test_online_training_stores_nothing_of_what_the_target_says(task, tmp_path, monkeypatch):
    task.teacher(), task.split("train"), task.split("val")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    folders = (task.cache.root, scratch)
    before = [files(folder) for folder in folders]
    decoder = specvlm.train(task, specvlm.SpecVlmParams(samples=8))
    assert [files(folder) for folder in folders] == before
    assert set(files(tmp_path)) <= {"curve.jsonl"}
    assert task.budget.spent["teacher_queries"] == task.budget.spent["samples"] == 3 * 4
    assert isinstance(decoder, TreeDecoder)
    assert len(decoder.facts["course"]) == 2  # after an epoch of 2 steps, and at the end
    assert all(not parameter.requires_grad for parameter in task.teacher().parameters())


def test_a_job_reports_and_says_what_the_target_says(run):
    result = run("decoding/specvlm", "scenes")
    metrics, extra = result.outcome.metrics, result.outcome.extra
    assert metrics["agreement"] == metrics["lossless"] == 1.0
    assert metrics["block_efficiency"] >= 1.0
    assert 0 < extra["visual_share"] <= 0.5  # a quarter of 16, or the 8 of the resampler
    assert extra["prefill_share"] < 1
    assert sum(extra[f"router/{way}"] for way in ("prune", "pool", "conv", "resampler")) == pytest.approx(1.0)
    assert extra["forwards_per_token"] == pytest.approx(1 / metrics["block_efficiency"])
    assert metrics["block_efficiency"] <= 1 + extra["accepted_length"] + 1e-9
    assert {"cls", "reg", "price"} <= set().union(*result.curve)


@pytest.mark.parametrize(("slug", "least"), [("sd_init", 1.0), ("kd_fkl", 1.0), ("self_draft", 3.0)])
def test_drafts_of_other_methods_read_the_text_alone_and_are_lossless(run, slug, least):
    metrics = run(f"decoding/{slug}", "scenes").outcome.metrics
    assert metrics["agreement"] == metrics["lossless"] == 1.0
    assert metrics["block_efficiency"] >= least


def test_variants_change_what_they_say(task):
    params = specvlm.SpecVlmParams(samples=8, teaching="offline", compressor="none", proposals="chain")
    decoder = specvlm.train(task, params)
    assert task.budget.spent["stored_bytes"] > 0
    assert not [path for path in task.folder.iterdir() if path.is_dir()]
    task.phase = "evaluate"
    study = tree_study(task, decoder)
    assert study["visual_share"] == study["prefill_share"] == study["router/none"] == 1.0
    assert study["chain_efficiency"] == pytest.approx(1 / study["forwards_per_token"])
    assert (task.folder / "artifacts/tree.json").exists()


def test_parameters_say_what_the_draft_is():
    params = specvlm.SpecVlmParams
    assert specvlm.ways_of(params()) == ("prune", "pool", "conv", "resampler")
    assert specvlm.ways_of(params(text_branch=True))[-1] == "drop"
    assert specvlm.ways_of(params(compressor="pool")) == ("pool",)
    chain = specvlm.shape_of(params(proposals="chain", depth=5))
    assert (chain.breadth, chain.size, chain.drawn) == (1, 5, True)


def test_declines_count_real_ones_and_all_ties_but_one():
    steady = [[1.0, 2.0, 3.0], [1.5, 2.5, 3.5], [2.0, 3.0, 4.0]]
    assert declines(steady) == 0
    assert declines(steady[::-1]) == 2
    tie = [[1.0, 2.0, 3.0], [1.4, 1.7, 2.85], [1.0, 2.0, 3.0], [1.4, 1.7, 2.85]]
    assert declines(tie[:2]) == 0
    assert declines(tie) == 1


def test_a_decoder_comes_back_from_its_folder(task, tmp_path):
    task.phase = "evaluate"
    torch.manual_seed(0)
    draft = specvlm.Eagle(task.teacher(), ("prune", "resampler"), queries=3)
    decoder = TreeDecoder(draft, specvlm.Shape(3, 2, 4), {"course": [[1.0]]})
    task.save(decoder, tmp_path / "saved")
    loaded = task.load(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/kdbench.json").read_text())["decoder"] == "tree"
    assert (loaded.shape, loaded.facts) == (decoder.shape, decoder.facts)
    prompts = task.test_prompts()
    written, again = task.decode(decoder, prompts), task.decode(loaded, prompts)
    assert (again.tokens, again.forwards, again.extra) == (written.tokens, written.forwards, written.extra)
