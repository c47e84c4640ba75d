"""A linear function to learn: the smallest task that has all that a task has."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdbench.task import Scores, Task


@dataclass
class Batch:
    x: torch.Tensor
    y: torch.Tensor

    def __len__(self):
        return len(self.x)


class ToyTask(Task):
    def build_student(self):
        return nn.Linear(self.spec.features, 1)

    def build_teacher(self):
        return nn.Linear(self.spec.features, 1)

    def load_teacher(self):
        recipe = self.spec.teacher

        def make(folder):
            (folder / "made").write_text(f"{os.getpid()}")
            time.sleep(recipe.wait)
            if recipe.fault == "raise":
                raise ValueError("the teacher cannot be trained")
            if recipe.fault == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            network = self.build_teacher()
            x, y = self.examples("train")
            optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
            for _ in range(recipe.steps):
                optimizer.zero_grad()
                ((network(x) - y) ** 2).mean().backward()
                optimizer.step()
            save_file(network.state_dict(), folder / "model.safetensors")

        folder = self.cache.get("teacher", self.spec.teacher_key(), make)
        network = self.build_teacher()
        network.load_state_dict(load_file(folder / "model.safetensors"))
        return network

    def examples(self, split):
        generator = torch.Generator().manual_seed({"train": 0, "val": 1, "test": 2}[split])
        x = torch.randn(self.spec.examples, self.spec.features, generator=generator)
        return x, x.sum(1, keepdim=True) / 2

    def train_loader(self):
        x, y = self.examples("train")
        order = torch.randperm(len(x), generator=self.generator("data"))
        size = self.spec.recipe.batch_size
        return [Batch(x[rows], y[rows]) for rows in order.split(size)]

    @torch.no_grad()
    def validate(self, model):
        x, y = self.examples("val")
        return {"mse": float(((model(x) - y) ** 2).mean())}

    @torch.no_grad()
    def score_test(self, model):
        self.require_evaluation()
        x, y = self.examples("test")
        error = model(x) - y
        examples = {"mse": (error**2).flatten().numpy()}
        return Scores({"mse": float((error**2).mean()), "mae": float(error.abs().mean())}, examples)

    def board_problems(self):
        self.require_evaluation()
        return list(self.spec.refuses)

    def check(self, model):
        self.require(model, nn.Module)

    def save(self, model, folder):
        folder.mkdir(parents=True)
        save_file(model.state_dict(), folder / "model.safetensors")

    def load(self, folder):
        network = self.build_student()
        network.load_state_dict(load_file(folder / "model.safetensors"))
        return network
