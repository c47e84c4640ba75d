"""Parameters of a method: a frozen pydantic model whose fields are literals.

Fields are written as ``name: type = Field(default, ge=..., le=..., description="...")`` with a literal default
and literal bounds, so that ``kdbench check`` and ``kdbench plan`` validate suites from the source alone.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Field", "Params"]


class Params(BaseModel):
    """Base of every method's parameters: immutable, no unknown keys, finite numbers, validated defaults."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, protected_namespaces=()
    )
