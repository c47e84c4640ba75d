"""What a task of the track ``decoding`` is. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from kdbench.spec import SpecModel
from kdbench.tracks.decoding.data.specs import DecodingData
from kdbench.tracks.decoding.kinds import KINDS
from kdbench.tracks.llm.spec import Evaluation, Hub, LLMSpec, Net, SmolLM2, split_fields


class DecodingGate(SpecModel):
    """What target and draft must be like before a board says anything about drafts; null: not asked for."""

    target_exact_match: float | None = 0.85
    """Of the target on the validation problems, at least."""
    draft_exact_match: float | None = 0.5
    """Of the draft that is trained on the ground truth alone, at most."""
    alpha: tuple[float, float] | None = (0.4, 0.8)
    """Share of proposals of that draft which would be accepted at temperature 1, least and most."""


class DecodingEvaluation(Evaluation):
    """How decoders are scored."""

    gamma: int = Field(5, ge=1, le=64)
    """Proposals a round in the official measures."""
    gammas: tuple[int, ...] = (3, 5, 7)
    """Proposals a round that drafts are reported at."""
    max_new: int = Field(64, ge=1)
    timed: int = Field(8, ge=1)
    """Prompts that decoder and target are timed on, one at a time and in turns."""


class Vlm(Net):
    """A LLaVA built from a configuration: a CLIP vision tower, a projector of two layers and a Llama."""

    kind: Literal["vlm"] = "vlm"  # type: ignore[assignment]
    family: Literal["llava"] = "llava"  # type: ignore[assignment]
    image: int = Field(48, ge=8)
    """Pixels of a side of a picture."""
    patch: int = Field(6, ge=1)
    """Pixels of a side of a patch; each is a visual token."""
    vision_layers: int = Field(2, ge=1)
    vision_width: int = Field(64, ge=8)
    vision_heads: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _vision(self) -> Vlm:
        if self.image % self.patch:
            raise ValueError(f"image {self.image} is not a multiple of patch {self.patch}")
        if self.vision_width % self.vision_heads:
            raise ValueError(f"vision_width {self.vision_width} is not a multiple of vision_heads {self.vision_heads}")
        return self

    @property
    def visual_tokens(self) -> int:
        return (self.image // self.patch) ** 2


class DecodingSpec(LLMSpec):
    """A task of the track ``decoding``: teacher is the target, student the draft."""

    kinds: ClassVar[Mapping[str, str]] = KINDS
    floor: str = "sd_init"
    ceiling: str = "self_draft"
    data: DecodingData  # type: ignore[assignment]
    teacher: Annotated[Net | Vlm | Hub | SmolLM2, Field(discriminator="kind")]  # type: ignore[assignment]
    evaluation: DecodingEvaluation = DecodingEvaluation()
    gate: DecodingGate | None = None  # type: ignore[assignment]

    def responses_key(self, split: str, temperature: float, count: int) -> dict[str, Any]:
        """What the target's responses to the first prompts of a split are found by."""
        return {
            "track": self.track,
            "target": self.teacher_identity(),
            "data": split_fields(self.data, split),
            "split": split,
            "temperature": temperature,
            "count": count,
            "max_new": self.evaluation.max_new,
        }

    def gap_key(self) -> dict[str, Any]:
        return {**super().gap_key(), "gamma": self.evaluation.gamma}
