"""Distillation across scales: what each scale sees and learns, and the decoder after it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.diffusion.batches import Batch
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.processes import Edm
from kdbench_methods.diffusion.yonos_sr import scale_loss, stages


def test_stages_share_the_steps():
    assert stages([2, 4, 8], 8, 11) == [(2, 4), (4, 4), (8, 3)]
    assert stages([8], 8, 11) == [(8, 11)]
    for scales in ([4, 2, 8], [2, 4], [2, 2, 8], [3, 8]):
        with pytest.raises(UsageError, match="scales rise"):
            stages(scales, 8, 11)
    with pytest.raises(UsageError, match="less than one"):
        stages([2, 4, 8], 8, 2)


class Recorder(torch.nn.Module):
    """A denoiser that gives ``scale`` times what it is given, and keeps its inputs."""

    def __init__(self, scale):
        super().__init__()
        self.process = Edm()
        self.scale = torch.nn.Parameter(torch.tensor(scale))
        self.calls = []

    def forward(self, z, t, cond):
        self.calls.append((z.detach(), t, cond.image))
        return self.scale * z


def setting():
    """A task whose degraded images say their scale, and a batch."""
    kind = SimpleNamespace(degraded=lambda x, scale, generator: torch.full_like(x, float(scale)))
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(kind=kind), Batch(x, Condition(5, image=torch.zeros_like(x)), torch.arange(5))


def test_both_networks_see_the_same_noised_image_with_their_own_condition():
    task, batch = setting()
    student, teacher = Recorder(0.5), Recorder(0.9)
    loss = scale_loss(task, 8, torch.Generator().manual_seed(1), teacher, 4)
    loss(student, batch).backward()
    (mine,), (theirs,) = student.calls, teacher.calls
    assert torch.equal(mine[0], theirs[0])
    assert torch.equal(mine[1], theirs[1])
    assert mine[2].unique().tolist() == [8.0]
    assert theirs[2].unique().tolist() == [4.0]
    assert student.scale.grad.abs() > 0
    assert teacher.scale.grad is None


def test_the_target_is_the_teacher_and_not_the_image():
    task, batch = setting()
    teacher = Recorder(0.5)
    same = scale_loss(task, 8, torch.Generator().manual_seed(1), teacher, 4)(Recorder(0.5), batch)
    assert float(same.detach()) == 0
    student = Recorder(0.7)
    found = float(scale_loss(task, 8, torch.Generator().manual_seed(1), teacher, 4)(student, batch).detach())
    z, t, _ = student.calls[0]
    weight = Edm().denoising_weight(t)
    assert found == pytest.approx(float((weight * ((0.2 * z) ** 2).flatten(1).mean(1)).mean()), rel=1e-5)


def test_the_first_scale_learns_the_image():
    task, batch = setting()
    student = Recorder(1.0)
    found = float(scale_loss(task, 2, torch.Generator().manual_seed(1))(student, batch).detach())
    z, t, image = student.calls[0]
    assert image.unique().tolist() == [2.0]
    assert found == pytest.approx(float((Edm().denoising_weight(t) * (z - batch.x).square().flatten(1).mean(1)).mean()))


def test_scales_and_decoder_share_the_budget(run, tmp_path):
    found = run("diffusion/yonos_sr", "sr")
    metrics, extra = found.outcome.metrics, found.outcome.extra
    assert found.outcome.cost["steps"] == 12
    assert metrics["nfe"] == 1
    assert extra["psnr_15_gain"] == pytest.approx(extra["psnr_15"] - extra["psnr_1"])
    assert extra["spread_ratio"] == pytest.approx(extra["target_spread"] / extra["truth_spread"])
    assert [len(found.column(f"x{scale}/loss")) for scale in (2, 4, 8)] == [4, 3, 3]
    assert len(found.column("decoder/perceptual")) == 1
    (path,) = tmp_path.rglob("spreads.json")
    rows = json.loads(path.read_text())
    assert len(rows) == 8
    assert rows[0]["t"] > rows[-1]["t"]


def test_direct_training_spends_everything_on_one_scale(run):
    found = run("diffusion/yonos_sr", "sr", scales=[8], decoder=0.0)
    assert found.outcome.cost["steps"] == 12
    assert len(found.column("x8/loss")) == 12
    assert "spread_ratio" not in found.outcome.extra
    assert found.outcome.extra["psnr_1"] == found.outcome.metrics["psnr"]


def test_parameters_change_what_they_say(run):
    changes = ({}, {"decoder_lr": 0.05}, {"target": "truth"}, {"chain": False})
    usual, fast, truth, fresh = (run("diffusion/yonos_sr", "sr", **change) for change in changes)
    assert fast.outcome.metrics["psnr"] != usual.outcome.metrics["psnr"]
    assert fast.outcome.extra == usual.outcome.extra  # of the denoiser, which the decoder leaves alone
    assert usual.column("x2/loss") == truth.column("x2/loss") == fresh.column("x2/loss")
    assert truth.column("x4/loss")[0] > usual.column("x4/loss")[0] > 0
    assert fresh.column("x4/loss")[0] != usual.column("x4/loss")[0]


def test_an_interrupted_training_goes_on_in_its_second_scale(interrupted):
    interrupted("diffusion/yonos_sr", "sr", 6)
