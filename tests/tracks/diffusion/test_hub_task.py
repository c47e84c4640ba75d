"""Tasks of pretrained teachers: the code of paper scale, on pipelines and data sets made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdbench.errors import JobError, UsageError
from kdbench.job import Job
from kdbench.registry import discover
from kdbench.tracks.diffusion.samplers.fewstep import one_step
from kdbench.tracks.diffusion.task import DiffusionTask
from kdbench.worker import run_job
from tests.helpers.pipelines import pipelines, pixel_unet, saved, table

TEXTS = ["a cat", "red dog", "a red sky"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """``pixels``, ``sd`` and ``sdxl`` teachers, a folder of ``data`` and a model of ``features``."""
    import transformers

    root = tmp_path_factory.mktemp("paper")
    made = pipelines(root) | {"pixels": saved(root / "pixels", pixel_unet(), table())}
    rng, data = np.random.default_rng(0), root / "data" / "train"
    data.mkdir(parents=True)
    with (data / "metadata.jsonl").open("w") as file:
        for row in range(24):
            Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(data / f"{row}.png")
            file.write(json.dumps({"file_name": f"{row}.png", "label": row % 2, "text": TEXTS[row % 3]}) + "\n")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Dinov2Config(image_size=16, patch_size=8, **sizes)
    transformers.Dinov2Model(config).save_pretrained(root / "features")
    settings = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "image_processor_type": "BitImageProcessor"}
    (root / "features" / "preprocessor_config.json").write_text(json.dumps(settings))
    return made | {"data": root / "data", "features": root / "features"}


def overrides(folders: dict[str, Path], teacher: str, **data) -> dict:
    size = 8 if teacher == "pixels" else 16
    return {
        "teacher": {"path": str(folders[teacher])},
        "data": {
            "path": str(folders["data"]),
            "image": "image",
            "parts": {"train": "train"},
            "size": size,
            "train": 12,
            "val": 4,
            "test": 6,
            "features": str(folders["features"]),
            **data,
        },
        "limits": {"steps": 4},
        "recipe": {"batch_size": 2, "precision": "float32"},
        "evaluation": {"samples": 6, "val_samples": 4, "teacher_steps": 3, "grid": 2},
    }


def task_of(folders, tmp_path, name: str, teacher: str, **data) -> DiffusionTask:
    spec = discover().task(f"diffusion/{name}", "paper", overrides(folders, teacher, **data))
    return DiffusionTask(spec, seed=0, method="m", folder=tmp_path)


def test_data_are_states_of_the_teacher(folders, tmp_path):
    task = task_of(folders, tmp_path, "hf-text", "sd", text="text")
    split = task.split("train")
    assert split.x.shape == (12, 4, 8, 8), "latents at half the resolution"
    assert split.cond.embedding.shape[0] == 12
    assert torch.equal(split.cond.embedding[0], split.cond.embedding[3]), "the same text"
    assert not torch.equal(split.cond.embedding[0], split.cond.embedding[1])
    assert len(task.split("val")) == 4
    pixels = task_of(folders, tmp_path, "hf-pixels", "pixels", label="label")
    assert pixels.split("train").x.shape == (12, 3, 8, 8)
    assert pixels.split("train").cond.tokens[:4, 0].tolist() == [1, 2, 1, 2]
    assert float(pixels.split("train").x.min()) >= -1


def test_the_teacher_is_loaded_once_and_copied(folders, tmp_path):
    task = task_of(folders, tmp_path, "hf-pixels", "pixels")
    student, teacher = task.student(), task.teacher()
    assert teacher is task.kind.pretrained.denoiser
    assert all(p.requires_grad for p in student.parameters())
    assert not any(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        next(student.parameters()).add_(1)
    assert task.changed_teachers() == []
    with pytest.raises(JobError, match="not built here"):
        task.fresh_student()
    found = task.validate(one_step(student, task.sigma_init))
    assert set(found) == {"fd", "precision", "recall", "nfe"}
    other = task.validate(one_step(teacher, task.sigma_init))
    assert other["fd"] != found["fd"]


@pytest.mark.parametrize(
    ("method", "name", "teacher", "params"),
    [
        ("teacher_few", "hf-text", "sdxl", {}),
        ("dmd2", "hf-text", "sd", {"ratio": 1, "guidance": 2.0}),
        ("tdm", "hf-text", "sdxl", {"steps": 2}),
        ("sid_few_step", "hf-pixels", "pixels", {}),
        ("f_distill", "hf-pixels", "pixels", {"ratio": 1}),
    ],
)
def test_methods_run_on_pretrained_teachers(folders, tmp_path, method, name, teacher, params):
    registry = discover()
    found = registry.method(f"diffusion/{method}")
    data = {"text": "text"} if name == "hf-text" else {"text": None}
    spec = registry.task(f"diffusion/{name}", "paper", overrides(folders, teacher, **data))
    job = Job(
        method=found.key,
        method_digest=found.digest,
        params=found.canonical(params),
        task=spec.name,
        spec=spec.identity(),
        seed=0,
        track_version=registry.tracks["diffusion"].version,
        method_file=found.path,
        module=found.module,
        keep=("model",),
    )
    outcome = run_job(job, tmp_path / "job")
    assert outcome.status == "ok", outcome.error
    assert set(outcome.metrics) == {"fd", "precision", "recall", "nfe"}
    assert outcome.cost["parameters"] > 0
    assert (tmp_path / "job" / "artifacts" / "samples.png").exists()
    task = DiffusionTask(spec, seed=0, method="again", folder=tmp_path)
    sampler = task.load(tmp_path / "job" / "model")
    assert task.samples(sampler, 4).nfe == outcome.metrics["nfe"]


def test_what_the_data_lack_is_said(folders, tmp_path):
    with pytest.raises(UsageError, match="no column 'caption'"):
        task_of(folders, tmp_path, "hf-text", "sd", text="caption").split("train")
    with pytest.raises(UsageError, match="no part 'tests'"):
        task_of(folders, tmp_path, "hf-pixels", "pixels", parts={"train": "train", "test": "tests"}).split("train")
    with pytest.raises(UsageError, match="too few"):
        task_of(folders, tmp_path, "hf-pixels", "pixels", val=20).split("train")
    missing = discover().task("diffusion/hf-pixels", "paper", {"teacher": {"path": "/not/there"}})
    assert [problem.message for problem in missing.problems()] == ["there is no folder /not/there"]
