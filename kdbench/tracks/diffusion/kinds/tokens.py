"""Digits as sequences of codes: a teacher that writes code after code, and whose probabilities are known exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from kdbench.task import Scores, seed_of
from kdbench.tracks.diffusion.blocks.pretraining import pretrain
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.data import digits
from kdbench.tracks.diffusion.data.specs import CodesData
from kdbench.tracks.diffusion.evaluate import grids
from kdbench.tracks.diffusion.evaluate.sequences import (
    bigram_tv,
    neighbours,
    sampling_floor,
    sequence_table,
    total_variation,
)
from kdbench.tracks.diffusion.kinds.base import Kind, Split
from kdbench.tracks.diffusion.kinds.digits import Digits
from kdbench.tracks.diffusion.networks.causal import CausalGpt
from kdbench.tracks.diffusion.networks.vq import VqAutoencoder, nearest_code
from kdbench.tracks.diffusion.samplers.base import Sampled, Sampler
from kdbench.tracks.diffusion.samplers.sequences import Causal, load_sequence_model, save_sequence_model
from kdbench.tracks.diffusion.spec import CodesTeacher

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask

FORMAT = 1
"""Bumped by hand when tokenizers or reference sequences are made otherwise."""
REVIVALS = 50
"""Steps between two looks for codes that nothing uses, in the first half of the tokenizer's training."""


class Codes(Kind):
    """Sequences of codes, given the class. A sample is (L, D): the vectors of its codes."""

    vocabulary = (digits.CLASSES + 1,)

    @property
    def data(self) -> CodesData:
        """The task's data."""
        assert isinstance(self.spec.data, CodesData)
        return self.spec.data

    @property
    def net(self) -> CodesTeacher:
        """The task's teacher and tokenizer."""
        assert isinstance(self.spec.teacher, CodesTeacher)
        return self.spec.teacher

    @property
    def places(self) -> tuple[int, ...]:
        """Places of the grid that a sequence has, in order."""
        return tuple(range((self.data.size // 4) ** 2)) if self.data.places is None else self.data.places

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (len(self.places), self.net.code_width)

    @cached_property
    def data_std(self) -> float:  # type: ignore[override]
        """Of the vectors in the training sequences, to two decimals."""
        return round(float(self.split("train").x.double().std()), 2)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of places of a sequence whose codes are counted together: neighbours in the picture."""
        if self.data.places is None:
            return neighbours(self.data.size // 4)
        return [(number, number + 1) for number in range(len(self.places) - 1)]

    # --- data -----------------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> VqAutoencoder:
        """Trained on the pictures of the training split, frozen, on the CPU."""
        net, data = self.net, self.data

        def make(folder: Path) -> None:
            x = self.digits.split("train").x
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of("diffusion/tokenizer", self.spec.teacher_seed))
                model = VqAutoencoder(data.size, net.codebook, net.code_width)

            def loss(generator: torch.Generator) -> Tensor:
                rows = torch.randint(len(x), (net.tokenizer_training.batch_size,), generator=generator)
                return torch.stack(list(model.losses(x[rows]).values())).sum()

            def revive(step: int, generator: torch.Generator) -> None:
                if step % REVIVALS == 0 and step <= net.tokenizer_training.steps // 2:
                    model.revive(x, generator)

            pretrain(model, loss, net.tokenizer_training, self.spec.teacher_seed, revive)
            save_file(model.state_dict(), folder / "model.safetensors")
            (folder / "config.json").write_text(json.dumps(model.config) + "\n")

        key = {
            "track": "diffusion",
            "format": FORMAT,
            "digits": {"size": data.size, "seed": data.seed, "train": data.train},
            "codebook": net.codebook,
            "code_width": net.code_width,
            "training": net.tokenizer_training.model_dump(mode="json"),
            "seed": self.spec.teacher_seed,
        }
        folder = self.cache.get("tokenizer", key, make)
        with torch.random.fork_rng(devices=[]):
            model = VqAutoencoder(**json.loads((folder / "config.json").read_text()))
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.requires_grad_(False).eval()

    def codes_of(self, x: Tensor) -> Tensor:
        """(B, L) int64 codes nearest to samples (B, L, D)."""
        return nearest_code(x, self.tokenizer.codebook.to(x))

    def decoded(self, codes: Tensor) -> Tensor:
        """(B, 1, P, P) pictures of sequences (B, L) of all places."""
        return self.tokenizer.decode(codes)

    @torch.no_grad()
    def make(self, name: str) -> Split:
        found = self.digits.split(name)
        codes = self.tokenizer.encode(found.x)[:, list(self.places)]
        return Split(self.tokenizer.codebook[codes], found.cond)

    # --- teacher ----------------------------------------------------------------------------------------------------

    def teacher(self, task: DiffusionTask) -> CausalGpt:
        """The causal network, from the cache or trained now by maximum likelihood on the training sequences."""

        def make(folder: Path) -> None:
            split, training = self.split("train"), self.net.training
            codes = self.codes_of(split.x)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed_of("diffusion/causal", self.spec.teacher_seed))
                model = self.build_teacher()

            def loss(generator: torch.Generator) -> Tensor:
                rows = torch.randint(len(codes), (training.batch_size,), generator=generator)
                drop = torch.rand(len(rows), generator=generator) < training.dropout
                logits = model(codes[rows, :-1], split.cond[rows].dropped(drop))
                return F.cross_entropy(logits.flatten(0, 1), codes[rows].flatten())

            pretrain(model, loss, training, self.spec.teacher_seed)
            save_sequence_model(model, folder)

        folder = self.cache.get("teacher", self.spec.teacher_identity(), make)
        return load_sequence_model(CausalGpt, folder)  # type: ignore[return-value]

    def build_teacher(self) -> CausalGpt:
        """An untrained network of the teacher's architecture, with the tokenizer's codebook."""
        net = self.net
        sizes = {"width": net.width, "depth": net.depth, "heads": net.heads}
        return CausalGpt(self.tokenizer.codebook, len(self.places), self.vocabulary[0], **sizes)

    def sampler(self, teacher: CausalGpt, guidance: float | None = None) -> Causal:
        """The official way to sample from the teacher: one evaluation a place, two with guidance."""
        return Causal(teacher, self.spec.guidance if guidance is None else guidance)

    @cached_property
    def _classes(self) -> Condition:
        return Condition.of_tokens(torch.arange(1, digits.CLASSES + 1))

    @torch.no_grad()
    def reference(self, task: DiffusionTask) -> Tensor:
        """(N, L) int64 sequences of the teacher for classes in the proportions of the training data; drawn once."""
        count = self.data.reference

        def make(folder: Path) -> None:
            cond = self.split("train").cond
            generator = torch.Generator().manual_seed(seed_of("diffusion/reference", self.spec.teacher_seed))
            teacher = self.teacher(task)
            codes = teacher.sample(cond[torch.arange(count) % len(cond)], generator, self.spec.guidance)
            save_file({"codes": codes}, folder / "codes.safetensors")

        key = {
            "teacher": self.spec.teacher_identity(),
            "count": count,
            "guidance": self.spec.guidance,
            "format": FORMAT,
        }
        folder = self.cache.get("reference", key, make)
        return load_file(folder / "codes.safetensors")["codes"]

    @torch.no_grad()
    def exact_tables(self, task: DiffusionTask) -> Tensor:
        """(classes, V ** L) float64: the teacher's probability of every sequence of a problem of two or three codes."""
        return self.teacher(task).table(self._classes, len(self.places), self.spec.guidance)

    # --- measures -----------------------------------------------------------------------------------------------------

    @cached_property
    def digits(self) -> Digits:
        """The same pictures as data of kind ``digits``: what decoded sequences are scored as."""
        return Digits(self.spec.model_copy(update={"data": self.data.as_digits()}), self.cache)

    def prepare(self, task: DiffusionTask) -> None:
        self.reference(task)
        if self.data.places is None:
            self.digits.prepare(task)

    @torch.no_grad()
    def _compare(self, task: DiffusionTask, sampler: Sampler, split: str) -> tuple[Scores, Sampled]:
        sampled = task.samples(sampler, split=split)
        codes = self.codes_of(sampled.x.cpu())
        cond = self.evaluation(len(codes), split)[1]
        assert cond.tokens is not None
        classes = cond.tokens[:, 0] - 1
        nll = -self.teacher(task).log_probs(codes, cond).double().mean(1)
        values = {
            "bigram_tv": bigram_tv(codes, self.reference(task), self.net.codebook, self.pairs),
            "teacher_nll": float(nll.mean()),
            "nfe": sampled.nfe,
        }
        examples = {"teacher_nll": nll.numpy()}
        if self.data.places is None:
            found = self.digits.measured(self.decoded(codes), cond, split, task.device)
            values |= {name: found.metrics[name] for name in ("fd", "precision", "recall", "accuracy", "diversity")}
            examples["accuracy"] = found.examples["accuracy"]
        else:
            values |= self._sequence_tv(task, sampler, codes, classes)
        return Scores(values, examples), sampled

    def _sequence_tv(self, task: DiffusionTask, sampler: Sampler, codes: Tensor, classes: Tensor) -> dict[str, float]:
        """``sequence_tv``, the mean over classes, and what a finite sample of the teacher itself would have.

        Samplers that know their probabilities (``table``) are compared exactly.
        """
        exact = self.exact_tables(task)
        if hasattr(sampler, "table"):
            mine = sampler.table(self._classes.to(task.device), len(self.places)).cpu()
            return {"sequence_tv": float(total_variation(mine, exact).mean()), "sequence_tv_floor": 0.0}
        found, floors = [], []
        for label in classes.unique():
            rows = codes[classes == label]
            found.append(total_variation(sequence_table(rows, self.net.codebook), exact[label]))
            floors.append(sampling_floor(exact[label], len(rows)))
        return {
            "sequence_tv": float(torch.stack(found).mean()),
            "sequence_tv_floor": sum(floors) / len(floors),
        }

    def validate(self, task: DiffusionTask, sampler: Sampler) -> dict[str, float]:
        return self._compare(task, sampler, "val")[0].metrics

    def measure(self, task: DiffusionTask, sampler: Sampler) -> Scores:
        """bigram_tv and teacher_nll (nats a code), both against the teacher, nfe.

        Whole pictures: fd, precision, recall, accuracy and diversity of the decoded ones. Two or three places:
        sequence_tv and sequence_tv_floor.
        """
        scores, sampled = self._compare(task, sampler, "test")
        grids.keep(task, self.pictures(task, sampled, self.evaluation(len(sampled.x), "test")[1]))
        return scores

    def pictures(self, task: DiffusionTask, sampled: Sampled, cond: Condition) -> Mapping[str, Any]:
        if self.data.places is not None or cond.tokens is None:
            return {}
        shown = grids.by_group(self.decoded(self.codes_of(sampled.x.cpu())), cond.tokens[:, 0].cpu())
        return {"samples.png": grids.tiles(shown, 8, caption="Decoded sequences, a row a class")}
