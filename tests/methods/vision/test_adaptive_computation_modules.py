"""Adaptive computation modules: what evaluation measures, the order of the stages, and what each one trains."""

import pytest
import torch
import torch.nn.functional as F

from kdbench_methods.vision import adaptive_computation_modules as method


def test_area_is_the_mean_height():
    line = [(0.0, 0.0), (2.0, 1.0)]
    assert method.area(line, 0, 2) == pytest.approx(0.5)
    assert method.area(line, 1, 2) == pytest.approx(0.75)
    assert method.area([(1.0, 0.3)], 0, 2) == pytest.approx(0.3)
    assert method.area(line, 0, 4) == pytest.approx(0.75)  # constant beyond the last point


def test_load_follows_the_object():
    masks = torch.zeros(2, 16, 16)
    masks[:, :8] = 1
    load = F.avg_pool2d(masks[:, None], 4).flatten(1)
    assert method.mask_correlation(3 * load, masks) == pytest.approx(1)
    assert method.mask_correlation(-load, masks) == pytest.approx(-1)
    assert method.mask_correlation(torch.ones(2, 16), masks) == 0


def test_three_stages_in_order_and_their_costs(smoke, tmp_path, monkeypatch):
    order = []
    for name in ("distill_modules", "train_gates", "finetune"):
        real = getattr(method, name)
        monkeypatch.setattr(method, name, lambda *args, real=real, name=name: order.append(name) or real(*args))
    outcome = smoke("adaptive_computation_modules", "vit-budget", {"distill_steps": 3, "gate_steps": 2})
    assert outcome.status == "ok", outcome.error
    assert order == ["distill_modules", "train_gates", "finetune"]
    assert outcome.cost["aux_steps"] == 3 + 2
    assert outcome.cost["steps"] == 6
    extra = outcome.extra
    assert 0 < extra["gate_cost_share"] < 1
    assert -1 <= extra["load_mask_correlation"] <= 1
    assert 0 <= extra["used_share"] <= 1
    assert extra["gain_over_fixed"] == pytest.approx(outcome.metrics["top1"] - extra["fixed_top1"])
    assert (tmp_path / "adaptive_computation_modules" / "artifacts" / "curves.json").is_file()


def test_without_gates_all_tokens_have_the_same_number(smoke):
    params = {
        "gates": "fixed",
        "budget": 0.5,
        "distill_steps": 2,
        "mixup": 0.8,
        "cutmix": 1.0,
        "parts": ["ffn", "q", "o"],
        "detach": True,
    }
    outcome = smoke("adaptive_computation_modules", "vit-budget", params)
    assert outcome.status == "ok", outcome.error
    assert "gain_over_fixed" not in outcome.extra
    assert outcome.extra["fixed_top1"] == pytest.approx(outcome.metrics["top1"])  # a point of the curve itself
    assert outcome.cost["aux_steps"] == 2


def test_modules_learn_from_the_teachers_inputs():
    from types import SimpleNamespace

    from kdbench.tracks.vision.models import ViT
    from kdbench.tracks.vision.models.acm import AcmViT

    torch.manual_seed(0)
    teacher, model = ViT(16, 2, 2, num_classes=5).eval(), AcmViT(16, 2, 2, num_classes=5)
    model.adopt(teacher)
    kept = []
    task = SimpleNamespace(teacher=lambda: teacher, fit=lambda model, loss, **options: kept.append((loss, options)))
    method.distill_modules(task, method.AcmParams(), model)
    (loss, options), batch = kept[0], SimpleNamespace(x=torch.randn(4, 3, 16, 16))
    assert options["spend"] == "aux_steps"
    first, second = model.acms().values()
    before = loss(model, batch).item()
    loss(model, batch).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {f"{name}.{w}" for name in model.acms() for w in ("w1", "b1", "w2", "b2")}
    # what the first module makes of its input does not reach the second one's term
    theirs = torch.autograd.grad(loss(model, batch), [second.w2])[0]
    with torch.no_grad():
        first.b2.add_(100.0)
    assert loss(model, batch).item() > before + 100
    torch.testing.assert_close(torch.autograd.grad(loss(model, batch), [second.w2])[0], theirs)
