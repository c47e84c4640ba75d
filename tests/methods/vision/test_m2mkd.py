"""Module-to-module distillation: identities of hybrids, independence of modules, equal steps, what evaluation adds."""

from types import SimpleNamespace

import pytest
import torch

from kdbench.budget import Budget
from kdbench.losses.logits import cross_entropy, kd_kl
from kdbench.registry import discover
from kdbench.tracks.vision.models import build
from kdbench.tracks.vision.models.hybrid import Section
from kdbench.tracks.vision.models.split import pieces
from kdbench.tracks.vision.task import VisionTask
from kdbench_methods.vision import m2mkd as method

CUTS = [(0, 2), (2, 4)]


def batch(n=6, classes=5):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 3, 16, 16, generator=g), torch.randint(classes, (n,), generator=g)
    return type("Some", (), {"x": x, "y": y, "__len__": lambda self: n})()


@pytest.mark.parametrize("number", [0, 1])
def test_a_teacher_module_in_its_own_place_has_no_divergence(number):
    torch.manual_seed(0)
    meta, teacher = build("vit(16,2,2)", 5).eval(), build("vit(16,4,2)", 5).eval()
    params, task = method.M2mkdParams(alpha=1.0), SimpleNamespace(budget=Budget({}))
    section = Section(teacher, *CUTS[number])
    loss = method.module_loss(task, params, pieces(meta), section, number)
    terms = loss(lambda state, record: section(state), batch())
    assert terms["kd"].item() == pytest.approx(0, abs=1e-7)
    assert terms["ce"].item() == 0
    other = method.module_loss(task, params, pieces(meta), Section(build("vit(16,4,2)", 5), *CUTS[number]), number)
    assert other(lambda state, record: section(state), batch())["kd"].item() > 1e-4


def test_the_divergence_is_divided_by_the_number_of_classes():
    torch.manual_seed(0)
    meta, teacher, student = build("vit(16,2,2)", 5), build("vit(16,4,2)", 5), build("vit(16,4,2)", 5)
    task, some = SimpleNamespace(budget=Budget({})), batch()
    taught, learning = Section(teacher, 2, 4), Section(student, 2, 4)  # the last modules: no suffix
    loss = method.module_loss(task, method.M2mkdParams(alpha=0.25), pieces(meta), taught, 1)
    terms = loss(lambda state, record: learning(state), some)
    state = pieces(meta).run(pieces(meta).embed(some.x), 0, 1)
    expected = kd_kl(learning(state), taught(state)).item() / 5
    assert terms["kd"].item() == pytest.approx(0.25 * expected, rel=1e-5)
    assert terms["ce"].item() == pytest.approx(0.75 * cross_entropy(learning(state), some.y).item(), rel=1e-5)


def test_modules_do_not_depend_on_each_other(tmp_path, monkeypatch):
    """The second module ends the same whatever becomes of the first."""
    spec, plain = discover().task("vision/homo-vit-vit", "smoke"), method.module_loss

    def spoiled(task, params, meta, teacher, number):
        loss = plain(task, params, meta, teacher, number)
        return loss if number else lambda module, some: {name: -term for name, term in loss(module, some).items()}

    ends = []
    for loss in (plain, spoiled):
        monkeypatch.setattr(method, "module_loss", loss)
        task, params = VisionTask(spec, seed=0, method="m2mkd", folder=tmp_path), method.M2mkdParams(meta_steps=2)
        teacher, like = method.vits(task)
        student = method.build(task, params, like)
        method.teach_modules(task, params, student, teacher)
        ends.append([torch.cat([p.flatten() for p in student.part_parameters(number)]) for number in range(2)])
    assert not torch.equal(ends[0][0], ends[1][0])
    assert torch.equal(ends[0][1], ends[1][1])


@pytest.mark.parametrize("params", [{}, {"student": "nac", "keep_stitches": True}, {"incubate_steps": 2, "k": 1}])
def test_steps_are_the_tasks_whatever_the_mode(smoke, tmp_path, params):
    outcome = smoke("m2mkd", "homo-vit-vit", {"meta_steps": 3, **params})
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["steps"] == 6
    assert outcome.cost["aux_steps"] == 3 + 2 * params.get("incubate_steps", 0)
    assert outcome.extra["assembly_val_nll"] > 0
    assert ("expert_usage_entropy" in outcome.extra) == (params.get("student") != "nac")


@pytest.mark.parametrize("mode", ["end_to_end", "kd"])
def test_controls_are_the_same_network_without_help(smoke, mode):
    outcome = smoke("m2mkd", "vit-fewclass", {"mode": mode})
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["steps"] == 6
    assert "aux_steps" not in outcome.cost
    assert ("teacher_queries" in outcome.cost) == (mode == "kd")
    assert 0 <= outcome.extra["fewshot_top1"] <= 1


def test_other_networks_are_refused(smoke):
    outcome = smoke("m2mkd", "hetero-rn-vit")
    assert outcome.status == "failed"
    assert "takes modules of vision transformers" in outcome.error.message


def test_too_many_modules_are_refused(smoke):
    outcome = smoke("m2mkd", "homo-vit-vit", {"modules": 3, "share": 0.2, "meta_steps": 1})
    assert outcome.status == "failed"
    assert "modules is 3; expected at most 2" in outcome.error.message
