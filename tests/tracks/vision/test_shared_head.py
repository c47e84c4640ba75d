"""A student behind the classifier of its teacher: what is frozen, what is saved, and the changed half of a batch."""

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.vision.models import build, rebuild
from kdbench.tracks.vision.models.shared_head import SharedHead


def made(arch="rn(4,1)"):
    torch.manual_seed(0)
    return SharedHead(arch, 24, num_classes=7)


X = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("arch", ["rn(4,1)", "vit(16,1,2)", "mixer(16,1)"])
def test_the_classifier_sees_projected_features_of_every_family(arch):
    model = made(arch).eval()
    taps = model.taps(X)
    assert taps.penult.shape == (5, 24)
    assert torch.equal(taps.logits, model.head()(taps.penult))
    assert torch.equal(model(X), taps.logits)


def test_the_shared_classifier_is_a_frozen_copy():
    model, teacher = made(), build("rn(6,1)", 7)
    model.share(teacher.head())
    assert torch.equal(model.head().weight, teacher.head().weight)
    assert model.head().weight is not teacher.head().weight
    assert not any(p.requires_grad for p in model.head().parameters())
    assert all(p.requires_grad for p in (*model.backbone.parameters(), *model.projector.parameters()))


def test_the_backbone_starts_from_the_student_and_has_no_classifier_of_its_own():
    model, student = made(), build("rn(4,1)", 7)
    model.start_from(student)
    assert torch.equal(model.backbone.taps(X).penult, student.taps(X).penult)
    assert sum(p.numel() for p in model.backbone.parameters()) == sum(
        p.numel() for name, p in student.named_parameters() if not name.startswith("fc.")
    )


def test_it_is_made_again_from_its_configuration():
    model = made().eval()
    again = rebuild(model.kind, model.config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(X), model(X))


def test_the_changed_half_follows_the_images_and_no_hook_stays():
    model = made().eval()
    same = model.twin_taps(X, 2, lambda out: out)
    assert torch.allclose(same.logits, model(X).repeat(2, 1), atol=1e-5)
    other = model.twin_taps(X, 2, torch.zeros_like)
    assert torch.allclose(other.penult[:5], model.taps(X).penult, atol=1e-5)
    assert not torch.allclose(other.penult[5:], other.penult[:5], atol=1e-3)
    assert model(X).shape == (5, 7)


def test_networks_without_maps_and_missing_stages_are_refused():
    with pytest.raises(UsageError, match="no feature maps"):
        made("vit(16,1,2)").twin_taps(X, 1, lambda out: out)
    with pytest.raises(UsageError, match="stage 4 does not exist"):
        made().twin_taps(X, 4, lambda out: out)
