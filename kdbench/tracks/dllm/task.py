"""``DllmTask``: what a method of the track ``dllm`` receives."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.errors import ArtifactError, JobError
from kdbench.task import Scores, Task, seed_of
from kdbench.track import Track
from kdbench.tracks.dllm import TRACK, gate, teachers
from kdbench.tracks.dllm.batches import Batch, Prompts, Rows
from kdbench.tracks.dllm.blocks.trajectories import Trajectories
from kdbench.tracks.dllm.decoders.base import Decoder
from kdbench.tracks.dllm.decoders.policy import PolicyDecoder
from kdbench.tracks.dllm.decoding import Written, joined
from kdbench.tracks.dllm.kinds import kind_of
from kdbench.tracks.dllm.kinds.base import Kind, Split
from kdbench.tracks.dllm.networks.build import new_transformer
from kdbench.tracks.dllm.policies.basic import TopK
from kdbench.tracks.dllm.spec import DllmSpec, Hub
from kdbench.training.loaders import Order


class DllmTask(Task):
    """One task of the track: a mask predictor that writes well one token per step, and problems to write about.

    ``train`` returns a :class:`~kdbench.tracks.dllm.decoders.base.Decoder`. The student starts as the teacher.
    """

    spec: DllmSpec
    home: ClassVar[Track] = TRACK

    # --- data -----------------------------------------------------------------------------------------------------

    @cached_property
    def kind(self) -> Kind:
        """What the track does with problems of this kind."""
        return kind_of(self.spec.data.kind)(self.spec)

    @property
    def mask(self) -> int:
        """Id of the mask."""
        return self.kind.mask

    @property
    def eos(self) -> int:
        """Id of the end, which also fills canvases and pads prompts."""
        return self.kind.eos

    @property
    def vocabulary(self) -> int:
        """Number of tokens (V)."""
        return self.kind.vocabulary

    @property
    def length(self) -> int:
        """Positions of a canvas (L)."""
        return self.spec.data.length

    @property
    def block(self) -> int:
        """Positions of a block."""
        return self.spec.decoding.block

    def split(self, name: str) -> Split:
        """A split, on the task's device. Test data raise ``TestDataError`` inside ``train``."""
        if name not in ("train", "val"):
            self.require_evaluation()
        found = self.kind.split(name)
        parts = (found.prompts, found.answer, found.operation)
        return Split(*(part.to(self.device) for part in parts), found.names, found.problems)

    def train_loader(self, batch_size: int | None = None, purpose: str = "data") -> Rows:
        """Batches of training problems in a new random order each epoch."""
        size = self.spec.recipe.batch_size if batch_size is None else batch_size
        split = self.split("train")
        order = Order(len(split), min(size, len(split)), self.generator(purpose), self.device)
        return Rows(order, Batch(split.prompts, split.answer, torch.arange(len(split), device=self.device)).__getitem__)

    def correct(self, split: str, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        """(n,) bool: whether canvases (n, L) solve the problems of a split, or of some ``rows`` of it."""
        if split not in ("train", "val"):
            self.require_evaluation()
        return self.kind.correct(split, tokens, rows).to(tokens.device)

    # --- decoding -------------------------------------------------------------------------------------------------

    def decode(self, decoder: Decoder, prompts: Prompts, **options: Any) -> Written:
        """Write after prompts, some at a time, in blocks as the task says; ``options`` win over the task's.

        In evaluation networks of the track compute in float64 where the task says so. What is drawn at random is the
        same for all methods.
        """
        if "generator" not in options:
            options["generator"] = torch.Generator().manual_seed(seed_of(self.spec.name, self.seed, "decoding"))
        usual = self.spec.decoding
        double = self.spec.evaluation.double and self.phase == "evaluate"
        settings: dict[str, Any] = {"length": self.length, "block": usual.block, "stop": usual.stop}
        settings |= {"cached": usual.cached, "double": double, **options}
        rows = torch.arange(len(prompts), device=prompts.ids.device).split(self.spec.evaluation.batch_size)
        return joined([decoder.decode(prompts[part], **settings) for part in rows])

    def reference(self, split: str) -> Written:
        """What the teacher writes one token per step after the prompts of a split; made once for all jobs."""
        if split not in ("train", "val"):
            self.require_evaluation()
        return self._text(split, None, 0.0)

    def _text(self, split: str, count: int | None, temperature: float) -> Written:
        """The teacher's own text, one token per step, after the first ``count`` prompts of a split."""
        key = self.spec.text_key(split, count, temperature)

        def make(folder: Path) -> None:
            spent = dict(self.budget.spent)
            prompts = self.split(split).prompts
            prompts = prompts if count is None else prompts[torch.arange(count, device=self.device)]
            generator = torch.Generator().manual_seed(seed_of(self.spec.name, "text", temperature))
            options = {"temperature": temperature, "generator": generator, "double": key["double"]}
            self.decode(PolicyDecoder(self.teacher(), TopK(1)), prompts, **options).save(folder)
            self.budget.restore(spent)  # what all jobs share is no cost of the first

        return Written.load(self.cache.get("text", key, make)).to(self.device)

    def trajectories(self, count: int, *, temperature: float = 0.0) -> Trajectories:
        """How the teacher writes one token per step after the first ``count`` training prompts, or all of them.

        Made once for all jobs; each pays for it in ``teacher_queries`` (forwarded sequences) and ``generated_tokens``.
        """
        split = self.split("train")
        count = min(count, len(split))
        written = self._text("train", count, temperature)
        self.budget.spend("teacher_queries", float(written.sequences.sum()))
        self.budget.spend("generated_tokens", float(written.lengths(self.eos).sum()))
        rows = torch.arange(count, device=self.device)
        correct = self.correct("train", written.tokens, rows)
        return Trajectories(split.prompts[rows], written.tokens, written.steps, correct, split.answer[rows])

    # --- networks -------------------------------------------------------------------------------------------------

    def load_teacher(self) -> nn.Module:
        if isinstance(self.spec.teacher, Hub):
            from kdbench.tracks.dllm.networks.hub import load_predictor

            return load_predictor(self.spec.teacher, device=self.device, trainable=False)
        return teachers.stored(self)

    def build_teacher(self) -> nn.Module:
        if isinstance(self.spec.teacher, Hub):
            raise JobError(f"the architecture of {self.spec.name}'s teacher is not built here")
        return new_transformer(self.spec)

    def build_student(self) -> nn.Module:
        """A trainable network with the teacher's weights; of models of the hub with adapters where the task says so."""
        if isinstance(self.spec.teacher, Hub):
            from kdbench.tracks.dllm.networks.hub import load_predictor

            lora = self.spec.student.lora
            return load_predictor(self.spec.teacher, device=self.device, trainable=True, lora=lora)
        return teachers.stored(self).train()

    def causal_reference(self) -> nn.Module:
        """A causal network as large as the teacher, trained on the same data with as many steps; frozen and metered.

        Raises ``JobError`` for models of the hub.
        """
        if isinstance(self.spec.teacher, Hub):
            raise JobError(f"{self.spec.name} has no causal reference: its teacher was not trained here")
        network: nn.Module = self.share(teachers.stored(self, causal=True))
        return network

    def prepare(self) -> None:
        """Make the teacher, its causal reference, its own text, and what the gate looks at."""
        self.load_teacher()
        if not isinstance(self.spec.teacher, Hub):
            teachers.stored(self, causal=True)
        phase, self.phase = self.phase, "evaluate"
        try:
            self.reference("test")
            self.reference("val")
            if self.spec.gate is not None:
                gate.measured(self)
        finally:
            self.phase = phase

    # --- evaluation -----------------------------------------------------------------------------------------------

    def validate(self, model: Decoder) -> dict[str, float]:
        """Official metrics on the validation problems."""
        from kdbench.tracks.dllm.evaluate.measure import measure

        spent = dict(self.budget.spent)
        try:
            return measure(self, model, "val").metrics
        finally:
            self.budget.restore(spent)  # looking at one's text is no cost of training

    def score_test(self, model: Decoder) -> Scores:
        from kdbench.tracks.dllm.evaluate.measure import measure

        scores = measure(self, model, "test")
        wanted = [metric.name for metric in self.spec.all_metrics()]
        missing = [name for name in wanted if name not in scores.metrics]
        if missing:
            known = ", ".join(sorted(scores.metrics))
            raise JobError(
                f"{self.spec.name} names metrics that are not measured: {', '.join(missing)} (there: {known})"
            )
        return Scores({name: scores.metrics[name] for name in wanted}, scores.examples)

    def board_problems(self) -> list[str]:
        """Why the task is not informative, where it is not."""
        self.require_evaluation()
        return [] if self.spec.gate is None else gate.problems(gate.measured(self), self.spec)

    # --- artifacts ------------------------------------------------------------------------------------------------

    def check(self, model: Any) -> None:
        if isinstance(model, nn.Module):
            raise ArtifactError(
                f"train returned a {type(model).__name__}, but the track 'dllm' evaluates decoders; "
                "a network is returned as PolicyDecoder(student, Threshold(0.9))"
            )
        self.require(model, Decoder)

    def save(self, model: Decoder, folder: Path) -> None:
        """What the decoder writes, and its kind."""
        self.check(model)
        folder.mkdir(parents=True, exist_ok=True)
        model.save(folder, self)
        (folder / "kdbench.json").write_text(json.dumps({"task": self.spec.name, "decoder": model.kind}) + "\n")

    def load(self, folder: Path) -> Decoder:
        """A decoder that :meth:`save` wrote."""
        kind = json.loads((folder / "kdbench.json").read_text())["decoder"]
        return Decoder.of_kind(kind).load(folder, self)
