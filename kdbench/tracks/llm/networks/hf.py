"""Hugging Face models and data sets, by name or from a local folder."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdbench.errors import JobError
from kdbench.tracks.llm.data.cpython import Document
from kdbench.tracks.llm.data.instruct import Item
from kdbench.tracks.llm.data.specs import HubData, HubInstructData, HubTextData
from kdbench.tracks.llm.spec import Hub, looks_local

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def local_or_hub(name: str) -> str:
    """A path with the home folder spelled out, or a hub name as it is."""
    return str(Path(name).expanduser()) if looks_local(name) else name


def load_model(hub: Hub, device: torch.device, *, trainable: bool, auto: Any = None) -> Any:
    """A causal language model as the task wants it; students also get adapters and gradient checkpointing.

    ``auto`` is the class that reads it, where that is not ``AutoModelForCausalLM``. Raises ``JobError`` with the name
    where transformers cannot load it.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": hub.dtype if hub.dtype == "auto" else getattr(torch, hub.dtype)}
    if hub.attn_implementation is not None:
        options["attn_implementation"] = hub.attn_implementation
    if hub.device_map is not None:
        options["device_map"] = hub.device_map
    if hub.quantize is not None:
        options["quantization_config"] = quantization(hub.quantize)
        options.setdefault("device_map", device)
    try:
        model = (AutoModelForCausalLM if auto is None else auto).from_pretrained(
            local_or_hub(hub.name), revision=hub.revision, trust_remote_code=hub.trust_remote_code, **options
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise JobError(f"cannot load the model {hub.name!r}: {error}") from error
    if "device_map" not in options:
        model = model.to(device)
    model.config.use_cache = False
    if trainable:
        if hub.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if hub.lora is not None:
            model = add_lora(model, hub)
    return model


def quantization(bits: str) -> Any:
    """How transformers loads the weights of linear layers in ``int8`` or ``int4``; activations stay as they are."""
    import torchao.quantization as ao
    from torchao.quantization.granularity import PerGroup
    from transformers import TorchAoConfig

    if bits == "int8":
        return TorchAoConfig(ao.Int8WeightOnlyConfig())
    return TorchAoConfig(ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)))


def add_lora(model: nn.Module, hub: Hub, task_type: str | None = "CAUSAL_LM") -> nn.Module:
    """Wrap a model in low-rank adapters (Hu et al., ICLR 2022); only they require gradients.

    ``task_type`` is what peft expects of the model; None: nothing but a forward.
    """
    from peft import LoraConfig, get_peft_model

    lora = hub.lora
    assert lora is not None
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, task_type=task_type
    )
    if hub.gradient_checkpointing:
        model.enable_input_require_grads()
    return get_peft_model(model, config)


def load_tokenizer(hub: Hub) -> Any:
    """The tokenizer that comes with a model; it must be a fast one."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            local_or_hub(hub.name), revision=hub.revision, trust_remote_code=hub.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise JobError(f"cannot load the tokenizer of {hub.name!r}: {error}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise JobError(f"the tokenizer of {hub.name!r} is not a fast one: character offsets are needed")
    if tokenizer.eos_token_id is None:
        raise JobError(f"the tokenizer of {hub.name!r} names no end-of-sequence token")
    return tokenizer


def load_rows(data: HubData, split: str) -> Any:
    """One split as a ``datasets.Dataset``; opened once per process.

    ``data.path`` is a folder of ``save_to_disk``, one file, a folder with one file per split named after it, or a name
    on the hub. Raises ``JobError`` where there is no such split.
    """
    return _load_rows(data.path, data.config, data.revision, data.splits[split])


@lru_cache(maxsize=8)
def _load_rows(source: str, config: str | None, revision: str | None, name: str) -> Any:
    import datasets

    local = Path(source).expanduser()
    try:
        if local.is_file():
            loaded = datasets.load_dataset(
                READERS[local.suffix], data_files={name.split("[")[0]: str(local)}, split=name
            )
        elif (local / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(str(local))[name]
        elif local.is_dir():
            files = {path.stem: path for path in sorted(local.iterdir()) if path.suffix in READERS}
            stem = name.split("[")[0]
            if stem not in files:
                raise JobError(f"{source} has no file for the split {name!r}; it has: {', '.join(files) or 'none'}")
            reader = READERS[files[stem].suffix]
            loaded = datasets.load_dataset(reader, data_files={stem: str(files[stem])}, split=name)
        else:
            loaded = datasets.load_dataset(source, config, revision=revision, split=name)
    except (ValueError, KeyError, OSError, datasets.exceptions.DatasetsError) as error:
        raise JobError(f"cannot load the split {name!r} of {source!r}: {error}") from error
    return loaded


def _column(rows: Any, name: str, path: str) -> list[str]:
    if name not in rows.column_names:
        raise JobError(f"{path!r} has no column {name!r}; it has: {', '.join(rows.column_names)}")
    return [text if isinstance(text, str) else "" for text in rows[name]]


def data_digest(data: HubTextData | HubInstructData, split: str) -> str:
    """SHA-256 of the text of a split, first 16 digits: keys encoded data, whatever the files are called."""
    rows = load_rows(data, split)
    columns = [data.text] if isinstance(data, HubTextData) else [data.prompt, data.response]
    if isinstance(data, HubInstructData) and data.context is not None:
        columns.append(data.context)
    state = hashlib.sha256()
    for column in columns:
        for text in _column(rows, column, data.path):
            state.update(text.encode() + b"\0")
    if isinstance(data, HubTextData):
        state.update("\0".join(_domains(rows, data) or ()).encode())
    return state.hexdigest()[:16]


def _domains(rows: Any, data: HubTextData) -> list[str] | None:
    """Domain of each row, where the data have such a column. Raises ``JobError`` for rows without one."""
    if data.domain is None:
        return None
    if data.domain not in rows.column_names:
        raise JobError(f"{data.path!r} has no column {data.domain!r}; it has: {', '.join(rows.column_names)}")
    names = ["" if value is None else str(value) for value in rows[data.domain]]
    if not all(names):
        raise JobError(f"row {names.index('')} of {data.path!r} has no domain in its column {data.domain!r}")
    return names


def text_documents(data: HubTextData, split: str) -> list[Document]:
    """Documents of a split; rows without text are left out."""
    rows = load_rows(data, split)
    texts = _column(rows, data.text, data.path)
    domains = _domains(rows, data) or ["text"] * len(texts)
    documents = [Document(t, d, {"name": f"{split}/{i}"}) for i, (t, d) in enumerate(zip(texts, domains, strict=True))]
    return [document for document in documents if document.text.strip()]


def instruct_items(data: HubInstructData, split: str) -> list[Item]:
    """Items of a split, up to the number that the task asks for; their one answer is the reference response."""
    rows = load_rows(data, split)
    limit = getattr(data, split)
    rows = rows if limit is None else rows.select(range(min(limit, len(rows))))
    prompts, responses = _column(rows, data.prompt, data.path), _column(rows, data.response, data.path)
    contexts = _column(rows, data.context, data.path) if data.context is not None else [""] * len(prompts)
    items = []
    for prompt, context, response in zip(prompts, contexts, responses, strict=True):
        instruction = f"{prompt}\n\n{context}" if context.strip() else prompt
        items.append(Item(instruction, response, (response,), (1.0,), "reference", 1))
    return items
