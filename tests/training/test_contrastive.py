"""Contrastive pre-training on images whose class shows in their features only after training; views of images."""

from types import SimpleNamespace

import torch
from torch import nn

from kdbench.budget import Budget
from kdbench.losses.contrastive import nt_xent
from kdbench.spec import Recipe
from kdbench.tracks.vision.views import colour_jitter, crop, random_view
from kdbench.training import loop
from kdbench.training.contrastive import Projected, simclr


def images(n=12, seed=0):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_pretraining_pulls_views_of_an_image_together_without_labels():
    calls = []

    def fit(model, loss, *, loader, steps, spend, tag, **recipe):
        calls.append((spend, tag))
        nobody = SimpleNamespace(
            device=torch.device("cpu"),
            budget=Budget({}),
            checkpoints=None,
            log=lambda *args, **values: None,
            progress=lambda *args: None,
        )
        rest = {"modules": (), "ema": None, "on_step": None, "state": (), "tag": tag}
        loop.fit(nobody, model, loss, loader=loader, recipe=Recipe(lr=0.01), steps=steps, spend=spend, **rest)

    class Images:
        """A batch without labels."""

        def __init__(self, x):
            self.x = x

        def __len__(self):
            return len(self.x)

    torch.manual_seed(0)
    model = Projected(nn.Flatten(), lambda network, x: network(x), 3 * 8 * 8, 16)
    x, g = images(), torch.Generator().manual_seed(1)
    view = random_view(g, reach=0, jitter=0.3, noise=0.5)

    def gap():
        with torch.no_grad():
            return nt_xent(model(view(x)), model(view(x)), 0.5)

    before = gap()
    made = simclr(SimpleNamespace(fit=fit), model, [Images(x)], view, steps=40)
    assert made is model
    assert not made.training
    assert gap() < before - 0.3
    assert calls == [("aux_steps", "simclr")]


def test_views_are_random_and_repeat_with_their_generator():
    x = images()

    def draw():
        return random_view(torch.Generator().manual_seed(3), smallest=0.5, flip=True)(x)

    assert torch.equal(draw(), draw())
    assert draw().shape == x.shape
    assert not torch.allclose(draw(), x)


def test_a_view_without_any_change_is_the_image():
    x = images()
    assert torch.equal(random_view(torch.Generator(), reach=0, jitter=0.0, noise=0.0)(x), x)


def test_a_window_of_the_whole_image_is_the_image_and_smaller_ones_stay_inside():
    x = images()
    assert torch.allclose(crop(x, torch.Generator(), 1.0), x, atol=1e-5)
    ramp = torch.linspace(0, 1, 8).expand(12, 3, 8, 8).contiguous()
    part = crop(ramp, torch.Generator().manual_seed(0), 0.5)
    assert part.min() >= 0
    assert part.max() <= 1
    assert ((part[..., -1] - part[..., 0])[:, 0, 0] < 1 - 1e-3).any()


def test_jitter_keeps_patterns_and_makes_some_images_grey():
    x = images(200)
    made = colour_jitter(x, torch.Generator().manual_seed(0), 0.5)
    grey = (made - made.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-6
    assert 0.1 < grey.double().mean() < 0.3
    ours, theirs = made[~grey], x[~grey]
    centred = [(each - each.mean((2, 3), keepdim=True)).flatten(2) for each in (ours, theirs)]
    assert torch.nn.functional.cosine_similarity(*centred, dim=2).min() > 0.999
