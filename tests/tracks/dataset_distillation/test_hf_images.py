"""The task of paper scale, on a folder of pictures that is made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdbench.registry import discover
from kdbench.tracks.dataset_distillation.task import DDTask
from kdbench_methods.dataset_distillation import cv_dd, smooth_expert_trajectories, sre2l


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, bright and dark, 24 training and 8 test pictures of 12 x 10 pixels each."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 8)):
        for label, level in enumerate((60, 190)):
            folder = root / part / str(label)
            folder.mkdir(parents=True)
            for n in range(count):
                pixels = np.clip(rng.normal(level, 30, (10, 12, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{n}.png")
    return root


def overrides(folder: Path) -> dict:
    return {
        "data": {"path": str(folder), "image": "image", "size": 8, "ipc": 2, "held": 0.2},
        "student": "convnet(1,4,instance)",
        "committee": ["resnet(8)", "mini_vgg(2)"],
        "training": {"epochs": 2, "batch_size": 8},
        "buffer": {"count": 1, "epochs": 2, "batch_size": 16},
        "evaluation": {
            "updates": 20,
            "batch_size": 4,
            "runs": 1,
            "whole_updates": 20,
            "unseen": ["convnet(1,2,batch)"],
        },
        "limits": {"steps": 16},
        "gate": None,
    }


@pytest.mark.parametrize(
    ("module", "params"),
    [(sre2l, {}), (cv_dd, {"prior_ipc": 1}), (smooth_expert_trajectories, {"steps_fraction": 0.5})],
    ids=["sre2l", "cv_dd", "smooth_expert_trajectories"],
)
def test_methods_of_paper_scale_run_on_a_folder(pictures, tmp_path, module, params):
    spec = discover().task("dataset_distillation/hf-images", "paper", overrides(pictures))
    task = DDTask(spec, seed=0, method="m", folder=tmp_path)
    assert (task.classes, task.shape) == (2, (3, 8, 8))
    assert len(task.split("val")) == 10
    kind = {name: value for name, value in vars(module).items() if name.endswith("Params") and name != "Params"}
    made = module.train(task, next(iter(kind.values()))(**params))
    task.check(made)
    task.phase = "evaluate"
    found = task.score(made)
    assert found["data_floats"] == 2 * 2 * 3 * 64
    assert 0 <= found["accuracy"] <= 1


def test_a_missing_folder_is_found_before_jobs_run():
    spec = discover().task("dataset_distillation/hf-images", "paper", {"data": {"path": "./no/such/folder"}})
    assert [problem.message for problem in spec.problems()] == ["there is no folder ./no/such/folder"]
