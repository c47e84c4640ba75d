"""For the blocks of the track ``diffusion``: exact denoisers of Gaussians, one that learns, and a task."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from kdbench.budget import Budget
from kdbench.registry import discover
from kdbench.spec import Recipe
from kdbench.tracks.diffusion.batches import Batch, Draw, Turn
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser
from kdbench.tracks.diffusion.processes import Edm, Process
from kdbench.tracks.diffusion.task import DiffusionTask
from kdbench.training.loop import fit


class GaussianDenoiser(Denoiser):
    """Posterior mean of x_0 ~ N(mean, factor factor^T) in D dimensions under any process; float64."""

    def __init__(self, mean: Tensor, factor: Tensor, process: Process) -> None:
        super().__init__()
        self.process, self.shape, self.channels = process, (len(mean),), {}
        self.mean, self.factor = mean, factor

    def denoise(self, x: Tensor, t: Tensor, cond: Condition, features: bool) -> Tensor:
        a, b = self.process.alpha(t)[:, None, None], self.process.sigma(t)[:, None, None]
        covariance = self.factor @ self.factor.T
        total = a**2 * covariance + b**2 * torch.eye(len(self.mean), dtype=x.dtype)
        residual = (x - a[:, :, 0] * self.mean)[..., None]
        return self.mean + (a * covariance @ torch.linalg.solve(total, residual))[..., 0]


class SmallDenoiser(Denoiser):
    """One hidden layer on flat samples, with the feature maps ``mid`` and ``out``; reads token 0 as a bias."""

    def __init__(self, process: Process | None = None, shape: tuple[int, ...] = (2,), width: int = 8, seed: int = 0):
        super().__init__()
        self.process, self.shape = process or Edm(), shape
        size = int(torch.tensor(shape).prod())
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.last = nn.Linear(size + 1, width), nn.Linear(width, size)
            self.tokens = nn.Embedding(4, width)
        self.channels = {"mid": width, "out": size}

    def denoise(self, x: Tensor, t: Tensor, cond: Condition, features: bool):
        hidden = self.first(torch.cat([x.flatten(1), t[:, None].log1p()], dim=1))
        if cond.tokens is not None:
            hidden = hidden + self.tokens(cond.tokens[:, 0])
        hidden = hidden.tanh()
        out = self.last(hidden)
        x0 = out.view(-1, *self.shape)
        return (x0, {"mid": hidden, "out": out}) if features else x0


class Streams(SimpleNamespace):
    """What losses need of a task: a teacher, and random numbers."""

    def __init__(self, teacher, process=None):
        super().__init__(process=process or teacher.process)
        self._teacher = teacher

    def teacher(self):
        return self._teacher

    def generator(self, purpose):
        return torch.Generator().manual_seed(len(purpose))


def draws(count: int = 4) -> Draw:
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(3))
    return Draw(noise, Condition.of_tokens(torch.arange(count) % 3 + 1))


class FakeTask(SimpleNamespace):
    """What :func:`alternate` needs of a task; samples have two coordinates, classes 1 to 3."""

    def __init__(self, steps: int = 12, batch: int = 4, **recipe) -> None:
        made = Recipe(optimizer="adam", lr=1e-3, schedule="constant", batch_size=batch, **recipe)
        super().__init__(
            budget=Budget({"steps": steps}),
            device=torch.device("cpu"),
            curve=[],
            checkpoints=None,
            spec=SimpleNamespace(recipe=made),
            turns_given=[],
        )

    def log(self, step: int, **values: float) -> None:
        self.curve.append({"step": step, **values})

    def progress(self, step: int, total: int | None, values: dict[str, float]) -> None:
        pass

    def turns(self, ratio: int, *, real: bool = False, batch_size: int | None = None):
        rng, size = torch.Generator().manual_seed(0), batch_size or self.spec.recipe.batch_size

        def draw() -> Draw:
            tokens = torch.randint(1, 4, (size,), generator=rng)
            return Draw(torch.randn(size, 2, generator=rng), Condition.of_tokens(tokens))

        def reals() -> Batch:
            one = draw()
            return Batch(one.noise + 3, one.cond, torch.zeros(size, dtype=torch.int64))

        while True:
            turn = Turn([draw() for _ in range(ratio)], draw(), [reals() for _ in range(ratio + 1)] if real else [])
            self.turns_given.append(turn)
            yield turn

    def fit(self, model, loss, *, loader, steps=None, ema=None, on_step=None, state=(), tag="", **recipe):
        return fit(
            self,
            model,
            loss,
            loader=loader,
            recipe=Recipe.model_validate({**self.spec.recipe.model_dump(), **recipe}),
            steps=steps,
            spend="steps",
            modules=(),
            ema=ema,
            on_step=on_step,
            state=tuple(state),
            tag=tag,
        )


def smoke_task(name: str, folder, cache, *, method: str = "m", seed: int = 0, **changes):
    """A smoke task of the track as a method receives it; methods with one name have the same random numbers."""
    spec = discover().task(f"diffusion/{name}", "smoke", changes or None)
    return DiffusionTask(spec, seed=seed, method=method, folder=folder, cache=cache)


def same_weights(left: nn.Module, right: nn.Module) -> bool:
    pairs = zip(left.state_dict().values(), right.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)
