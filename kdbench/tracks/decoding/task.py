"""``DecodingTask``: what a method of the track ``decoding`` receives."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from kdbench.errors import ArtifactError, JobError
from kdbench.task import Scores
from kdbench.track import Track
from kdbench.tracks.decoding import TRACK
from kdbench.tracks.decoding.blocks.acceptance import alpha_exact
from kdbench.tracks.decoding.data.pictures import pictures_of, with_pictures
from kdbench.tracks.decoding.data.specs import ScenesData
from kdbench.tracks.decoding.decoders.autoregressive import Autoregressive
from kdbench.tracks.decoding.decoders.base import Decoded, Decoder
from kdbench.tracks.decoding.spec import DecodingSpec, Vlm
from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.tracks.llm.generation import Prompts, Responses, as_batch
from kdbench.tracks.llm.networks.tokenizers import pad_id
from kdbench.tracks.llm.spec import Hub, Net
from kdbench.tracks.llm.task import LLMTask


class DecodingTask(LLMTask):
    """One task of the track: :meth:`teacher` is the target that has to be decoded, :meth:`student` a draft for it."""

    spec: DecodingSpec
    home: ClassVar[Track] = TRACK

    # --- decoding -----------------------------------------------------------------------------------------------------

    def decode(
        self,
        decoder: Decoder,
        prompts: Sequence[Sequence[int]],
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        max_new: int | None = None,
    ) -> Decoded:
        """Continue prompts with the task's target; ``max_new`` defaults to the task's."""
        return decoder.decode(
            self.teacher(),
            prompts,
            max_new=self.spec.evaluation.max_new if max_new is None else max_new,
            eos=self.tokenizer.eos_token_id,
            pad=pad_id(self.tokenizer),
            temperature=temperature,
            generator=generator,
        )

    def test_prompts(self) -> list[list[int]]:
        """Ids of the test prompts. Raises ``TestDataError`` inside ``train``."""
        return self._prompt_rows("test")

    def _prompt_rows(self, split: str, count: int | None = None) -> list[list[int]]:
        rows = len(self.split(split)) if count is None else min(count, len(self.split(split)))
        return self.prompts_of(split, torch.arange(rows)).ids

    def responses(self, split: str, temperature: float, count: int | None = None) -> list[list[int]]:
        """What the target writes, alone, after the prompts of a split (or the first ``count``); made once for all jobs.

        Sampled ones are those of one fixed seed.
        """
        prompts = self._prompt_rows(split, count)

        def make(folder: Path) -> None:
            generator, spent = torch.Generator().manual_seed(0), dict(self.budget.spent)
            written = self.decode(Autoregressive(), prompts, temperature=temperature, generator=generator)
            self.budget.restore(spent)  # what all jobs share is no cost of the first
            (folder / "responses.json").write_text(json.dumps(written.tokens))

        folder = self.cache.get("responses", self.spec.responses_key(split, temperature, len(prompts)), make)
        found: list[list[int]] = json.loads((folder / "responses.json").read_text())
        return found

    def target_text(self, split: str, temperature: float = 1.0, count: int | None = None) -> TextBatch:
        """Prompts of a split with the target's own responses, which are scored: the text that a draft has to guess."""
        tokens = self.responses(split, temperature, count)
        prompts = self.prompts_of(split, torch.arange(len(tokens)))
        responses = Responses(tokens, [[0.0] * len(row) for row in tokens])
        return with_pictures(as_batch(prompts, responses, pad_id(self.tokenizer)), prompts.ids).to(self.device)

    @torch.no_grad()
    def acceptance(self, draft: nn.Module, split: str = "val", temperature: float = 1.0) -> float:
        """Probability that the target accepts a proposal of ``draft``: the mean of 1 - TVD(p, q), or of equal choices.

        Over the positions of text that the target has written itself at ``temperature`` (:meth:`target_text`); 0 is
        greedy decoding, where a proposal is accepted if it is the target's most probable token.
        """
        was_training = draft.training
        draft.eval()
        try:
            tokens = self.tokens(draft, self.target_text(split, temperature))
        finally:
            draft.train(was_training)
        return float(alpha_exact(tokens.student, tokens.teacher, temperature=temperature).mean())

    def rollout(self, model: nn.Module, prompts: Prompts, **sampling: Any) -> TextBatch:
        """As for language models; prompts with pictures are continued without ``top_p`` and ``top_k``."""
        if pictures_of(prompts.ids) is None:
            return super().rollout(model, prompts, **sampling)
        if sampling.pop("top_p", 1.0) < 1 or sampling.pop("top_k", 0) > 0:
            raise JobError("prompts with pictures are continued from the whole distribution: leave out top_p and top_k")
        pad = pad_id(self.tokenizer)
        options = {"max_new": 32, "temperature": 1.0, **sampling}
        written = Autoregressive().decode(model, prompts.ids, eos=self.tokenizer.eos_token_id, pad=pad, **options)
        self.budget.spend("generated_tokens", sum(map(len, written.tokens)))
        if self.phase == "train" and model is self._teacher:
            self.budget.spend("teacher_queries", len(prompts))
        responses = Responses(written.tokens, [[0.0] * len(row) for row in written.tokens])
        batch = as_batch(prompts, responses, pad)
        return with_pictures(replace(batch, logprobs=None), prompts.ids).to(self.device)

    # --- the task -----------------------------------------------------------------------------------------------------

    def _build(self, net: Net) -> nn.Module:
        if isinstance(net, Vlm):
            from kdbench.tracks.decoding.networks.vlm import build

            return build(net, self.tokenizer)
        return super()._build(net)

    def load_teacher(self) -> nn.Module:
        target = self.spec.teacher
        if isinstance(self.spec.data, ScenesData):
            from kdbench.tracks.decoding.networks.vlm import load, stored

            return load(target, self.device) if isinstance(target, Hub) else stored(self.teacher_folder())
        return super().load_teacher()

    def build_teacher(self) -> nn.Module:
        if isinstance(self.spec.data, ScenesData) and isinstance(self.spec.teacher, Hub):
            from kdbench.tracks.decoding.networks.vlm import Llava, config_of

            return Llava(config_of(self.spec.teacher))
        return super().build_teacher()

    def prepare(self) -> None:
        """As for language models, with the target's own responses to the validation and test prompts."""
        super().prepare()
        phase, self.phase = self.phase, "evaluate"
        try:
            self.responses("test", 0.0)
        finally:
            self.phase = phase
        self.responses("val", 1.0)

    def gap(self) -> dict[str, float]:
        """``target_exact_match``, ``draft_exact_match`` and ``alpha``, on the validation data.

        The draft is one that is trained on the ground truth with the task's recipe and limits, seed 0. Texts have no
        exact match. Measured once per task, kept in the cache.
        """

        def make(folder: Path) -> None:
            with tempfile.TemporaryDirectory() as scratch:
                probe = type(self)(
                    self.spec,
                    seed=0,
                    method=self.spec.floor,
                    folder=Path(scratch),
                    cache=self.cache,
                    device=self.device,
                )
                draft = probe.student()
                probe.fit(draft, lambda model, batch: probe.nll(model, batch).mean())
                values = {"alpha": probe.acceptance(draft)}
                for role, network in (("target", probe.teacher()), ("draft", draft)):
                    found = probe.validate(network)
                    values |= {f"{role}_{name}": value for name, value in found.items()}
            (folder / "gap.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")

        path = self.cache.get("gap", self.spec.gap_key(), make)
        values: dict[str, float] = json.loads((path / "gap.json").read_text())
        return values

    def board_problems(self) -> list[str]:
        """Why target and draft of the task are no pair that drafts can be compared on."""
        self.require_evaluation()
        wanted, reasons = self.spec.gate, []
        if wanted is None:
            return []
        values = self.gap()
        target, draft = values.get("target_exact_match"), values.get("draft_exact_match")
        if wanted.target_exact_match is not None and target is not None and target < wanted.target_exact_match:
            reasons.append(f"the target's exact match is {target:.3f}, less than {wanted.target_exact_match:g}")
        if wanted.draft_exact_match is not None and draft is not None and draft > wanted.draft_exact_match:
            reasons.append(f"a plain draft's exact match is {draft:.3f}, more than {wanted.draft_exact_match:g}")
        if wanted.alpha is not None and not wanted.alpha[0] <= values["alpha"] <= wanted.alpha[1]:
            least, most = wanted.alpha
            reasons.append(f"a plain draft's acceptance is {values['alpha']:.3f}, not between {least:g} and {most:g}")
        return reasons

    def score_test(self, model: Any) -> Scores:
        from kdbench.tracks.llm.scoring import official

        scores = self.kind.measure(self, model)
        return Scores(official(self, scores.metrics), scores.examples)

    # --- artifacts ----------------------------------------------------------------------------------------------------

    def check(self, model: Any) -> None:
        if isinstance(model, nn.Module):
            raise ArtifactError(
                f"train returned a {type(model).__name__}, but the track 'decoding' evaluates decoders; "
                "a draft is returned as Speculative(draft)"
            )
        self.require(model, Decoder)

    def save(self, model: Decoder, folder: Path) -> None:
        """What the decoder writes, and its kind."""
        self.check(model)
        folder.mkdir(parents=True, exist_ok=True)
        model.save(folder)
        (folder / "kdbench.json").write_text(json.dumps({"task": self.spec.name, "decoder": model.kind}) + "\n")

    def load(self, folder: Path) -> Decoder:
        """A decoder that :meth:`save` wrote."""
        kind = json.loads((folder / "kdbench.json").read_text())["decoder"]
        return Decoder.of_kind(kind).load(folder, self)

    def load_network(self, folder: Path) -> nn.Module:
        """A causal language model that a decoder has saved, in eval mode on the task's device."""
        from transformers import AutoModelForCausalLM

        network: nn.Module = AutoModelForCausalLM.from_pretrained(folder).to(self.device).eval()
        return network
