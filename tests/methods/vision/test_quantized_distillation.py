"""Quantized distillation: the gradient of the quantized network reaches the full-precision weights, which stay."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from kdbench.losses.logits import cross_entropy, kd_kl
from kdbench.training.quantization import uniform
from kdbench_methods.vision import quantized_distillation as method

Params = method.QuantizedDistillationParams


class Recorder:
    """A task whose ``fit`` keeps the loss."""

    device = torch.device("cpu")

    def __init__(self):
        self.generator = lambda purpose: torch.Generator().manual_seed(0)
        self.teacher_logits = lambda batch: batch.teacher

    def fit(self, model, loss, on_step=None, **options):
        self.loss, self.on_step = loss, on_step


class Batch:
    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(6, 5, generator=g), torch.randint(3, (6,), generator=g)
        self.teacher = torch.randn(6, 3, generator=g)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def test_the_loss_is_that_of_the_quantized_copy_and_the_master_weights_stay():
    task, batch, model, params = Recorder(), Batch(), network(), Params(bits=2, bucket=8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    method.fit_student(task, params, model, ["0.weight", "2.weight"])
    parts = task.loss(model, batch)
    sum(parts.values()).backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    # the same by hand: put quantized weights into a copy and differentiate there
    copy = network()
    with torch.no_grad():
        for index in (0, 2):
            copy[index].weight.copy_(uniform(copy[index].weight, 2, 8).weights)
    assert not torch.equal(copy[0].weight, model[0].weight)
    sum(method.losses(copy(batch.x), batch.teacher, batch.y, params).values()).backward()
    for mine, theirs in zip(model.parameters(), copy.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_truncated_clamps_the_master_weights():
    task, model = Recorder(), network()
    with torch.no_grad():
        model[0].weight.mul_(100)
    method.fit_student(task, Params(truncated=True), model, ["0.weight"])
    assert model[0].weight.abs().max() == 1  # before the first step
    with torch.no_grad():
        model[0].weight.mul_(3)
    task.on_step(1)
    assert model[0].weight.abs().max() == 1
    method.fit_student(task, Params(), model, ["0.weight"])
    assert task.on_step is None


def test_the_divergence_is_averaged_over_samples_and_classes():
    batch, logits = Batch(), torch.randn(6, 3)
    parts = method.losses(logits, batch.teacher, batch.y, Params())
    elements = kd_kl(logits, batch.teacher, 2.0) / 3
    torch.testing.assert_close(parts["kd"], 0.7 * elements)
    torch.testing.assert_close(parts["ce"], 0.3 * cross_entropy(logits, batch.y))
    samples = method.losses(logits, batch.teacher, batch.y, Params(reduction="samples"))
    torch.testing.assert_close(samples["kd"], 3 * parts["kd"])
    assert list(method.losses(logits, None, batch.y, Params())) == ["ce"]


def saved(tmp_path):
    return load_file(tmp_path / "quantized_distillation" / "artifacts" / "full_precision.safetensors")


@pytest.mark.parametrize(
    "params",
    [
        {"bits": 1, "rounding": "stochastic"},
        {"bits": 4, "truncated": True, "distill": False, "first_and_last": False},
        {"method": "post"},
        {"method": "differentiable", "points_steps": 3, "gradient_steps": 2},
        {"method": "differentiable", "points_steps": 3, "points_teacher": "teacher", "redistribute": False},
    ],
)
def test_the_result_is_on_few_levels(smoke, tmp_path, params):
    outcome = smoke("quantized_distillation", "digits-gap", params)
    assert outcome.status == "ok", outcome.error
    sizes = json.loads((tmp_path / "quantized_distillation" / "artifacts" / "sizes.json").read_text())
    full = saved(tmp_path)
    layers = [name for name, tensor in full.items() if name.endswith(".weight") and tensor.dim() > 1]
    assert len(sizes) == len(layers) - (0 if params.get("first_and_last", True) else 2)
    assert all(2 <= size["used"] <= size["levels"] for size in sizes.values())
    assert outcome.extra["bits_per_weight"] <= params.get("bits", 2) + 1
    assert outcome.cost.get("aux_steps", 0) == {"differentiable": 3 + params.get("gradient_steps", 0)}.get(
        params.get("method"), 0
    )
    low = outcome.extra["full_precision_top1"] - outcome.metrics["top1"]
    assert outcome.extra["precision_gap"] == pytest.approx(low)


def test_more_bits_take_more_room_and_come_closer(smoke, tmp_path):
    coarse = smoke("quantized_distillation", "digits-gap", {"method": "post", "bits": 2})
    (tmp_path / "quantized_distillation").rename(tmp_path / "coarse")
    fine = smoke("quantized_distillation", "digits-gap", {"method": "post", "bits": 12})
    assert coarse.extra["compressed_bytes"] < fine.extra["compressed_bytes"]
    assert fine.extra["precision_gap"] == pytest.approx(0, abs=0.02)
    assert coarse.extra["full_precision_top1"] == fine.extra["full_precision_top1"]
