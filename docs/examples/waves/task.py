"""What a method of the track receives."""

import math
from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdbench.task import Scores, Task


@dataclass
class Batch:
    """Some points of the wave."""

    x: torch.Tensor
    """(B, 1) float32 in [-1, 1]."""
    y: torch.Tensor
    """(B, 1) float32."""

    def __len__(self):
        return len(self.x)


def network(width):
    return nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))


class WavesTask(Task):
    """Points (x, sin(2 pi f x)): few and noisy ones for the student, many clean ones for the teacher."""

    def points(self, split):
        """(N, 1) inputs and labels of ``train``, ``val`` or ``test``; the latter raises inside ``train``."""
        if split == "test":
            self.require_evaluation()
        generator = torch.Generator().manual_seed(["train", "val", "test"].index(split))
        x = 2 * torch.rand(self.spec.points if split == "train" else 256, 1, generator=generator) - 1
        y = self.wave(x)
        if split == "train":
            y = y + self.spec.noise * torch.randn(y.shape, generator=generator)
        return x.to(self.device), y.to(self.device)

    def wave(self, x):
        return torch.sin(math.pi * self.spec.frequency * x)

    # --- networks: on the CPU, the task places them ---

    def build_student(self):
        return network(self.spec.width)

    def build_teacher(self):
        return network(self.spec.teacher.width)

    def load_teacher(self):
        """Made once by whoever comes first, read by everybody else; safe under concurrent workers."""
        folder = self.cache.get("teacher", self.spec.teacher_key(), self._make_teacher)
        teacher = self.build_teacher()
        teacher.load_state_dict(load_file(folder / "model.safetensors"))
        return teacher

    def _make_teacher(self, folder):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.spec.teacher_seed)
            teacher = self.build_teacher()
            optimizer = torch.optim.Adam(teacher.parameters(), lr=3e-3)
            for _ in range(self.spec.teacher.steps):
                x = 2 * torch.rand(128, 1) - 1
                optimizer.zero_grad()
                (teacher(x) - self.wave(x)).square().mean().backward()
                optimizer.step()
        save_file(teacher.state_dict(), folder / "model.safetensors")

    # --- data ---

    def train_loader(self):
        """Batches in the order of the stream ``data``, which is the same for every method."""
        x, y = self.points("train")
        return Loader(x, y, self.spec.recipe.batch_size, self.generator("data"))

    # --- scores ---

    @torch.no_grad()
    def validate(self, model):
        x, y = self.points("val")
        return {"mse": float((model(x) - y).square().mean())}

    @torch.no_grad()
    def score_test(self, model):
        x, y = self.points("test")
        error = (model(x) - y).square().flatten()
        metrics = {"mse": float(error.mean()), "worst": float(error.max())}
        return Scores(metrics, {"mse": error.double().cpu().numpy()})

    # --- what train returns ---

    def check(self, model):
        self.require(model, nn.Module)

    def save(self, model, folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), folder / "model.safetensors")

    def load(self, folder):
        state = load_file(folder / "model.safetensors")
        model = network(len(state["0.weight"]))
        model.load_state_dict(state)
        return model.to(self.device)


class Loader:
    """Epochs in random order; with ``state_dict`` an interrupted job goes on where it was."""

    def __init__(self, x, y, size, generator):
        from kdbench.training.loaders import Order

        self.x, self.y = x, y
        self.order = Order(len(x), size, generator, x.device)

    def __iter__(self):
        return (Batch(self.x[rows], self.y[rows]) for rows in self.order)

    def __len__(self):
        return len(self.order)

    def state_dict(self):
        return self.order.state_dict()

    def load_state_dict(self, state):
        self.order.load_state_dict(state)
