"""A model that gets another vocabulary: which one, its first embeddings, and how well it tells the text then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from kdbench.errors import UsageError, did_you_mean
from kdbench.tracks.llm.blocks.alignment import transplant
from kdbench.tracks.llm.chunks import states_and_logits
from kdbench.tracks.llm.data.instruct import Item
from kdbench.tracks.llm.networks.models import targets_of, token_nll
from kdbench.tracks.llm.networks.tokenizers import SIZES, train, wrap

if TYPE_CHECKING:
    from kdbench.tracks.llm.task import LLMTask


def tokenizer_named(task: LLMTask, name: str) -> Any:
    """``task`` (the student's own where it has one), a local tokenizer of the task's text, or a model's.

    Local ones are those of :data:`~kdbench.tracks.llm.networks.tokenizers.SIZES`. Raises ``UsageError`` for a name
    that is none of these.
    """
    if name == "task":
        return task.student_tokenizer
    if name == "bytes" and task.spec.data.kind.startswith("hf"):
        return wrap(train([], SIZES["bytes"]))  # learns nothing from text
    if name in SIZES:
        return task.local_tokenizer(name)
    from transformers import AutoTokenizer

    from kdbench.tracks.llm.networks.hf import local_or_hub

    try:
        return AutoTokenizer.from_pretrained(local_or_hub(name))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no tokenizer {name!r}: {error}", hint=did_you_mean(name, ["task", *sorted(SIZES)])
        ) from error


def rewritten(
    task: LLMTask, kind: Literal["task", "body"], tokenizer: Any, *, random: bool = False, purpose: str = "embeddings"
) -> Any:
    """The task's student (``task``) or a trainable copy of its teacher (``body``) with the tokens of ``tokenizer``.

    New embeddings are means of the old ones that spelt the token; with ``random`` they are drawn (stream ``purpose``)
    with the standard deviation of these means.
    """
    model = task.student() if kind == "task" else task.teacher(trainable=True)
    old = task.tokenizer_of(model)
    if tokenizer is old:
        return model
    with task.seeded(purpose):
        transplant(model, old, tokenizer)
        if random:
            # once where they are tied, and in a fixed order
            for layer in dict.fromkeys([model.get_input_embeddings(), model.get_output_embeddings()]):
                with torch.no_grad():
                    layer.weight.normal_(std=float(layer.weight.std()))
    return model


def make_room(model: Any, tokens: int) -> None:
    """Let a network read rows of so many tokens: a smaller vocabulary needs more of them for the same text.

    Rotary positions go on as far as they are asked for. Raises ``UsageError`` where positions are learned, one by one.
    """
    room = getattr(model.config, "max_position_embeddings", None)
    if room is None or tokens <= room:
        return
    if getattr(model.config, "rope_parameters", None) is None:
        raise UsageError(
            f"under its new tokenizer the longest row has {tokens} tokens, but the student has positions for {room}",
            hint="choose a larger vocabulary, or set the task's data.chunk (data.length) lower",
        )
    model.config.max_position_embeddings = tokens


@torch.no_grad()
def bits_per_byte(task: LLMTask, models: Sequence[nn.Module], tokenizer: Any) -> float:
    """Of the test data (of instructions the responses), for the averaged probabilities of models of one tokenizer."""
    split = task.split("test")
    texts = [row.response if split.kind is Item else row.text for row in split.rows]
    sequences = task.kind.encode_rows(split.rows, tokenizer)
    total = 0.0
    for batch in sequences.batches(task.spec.evaluation.batch_size, "test"):
        batch = batch.to(task.device)
        nll = [token_nll(states_and_logits(model, batch)[1], targets_of(batch)) for model in models]
        total -= float((torch.logsumexp(-torch.stack(nll), 0) - np.log(len(models))).double().sum())
    return float(total / sum(len(text.encode()) for text in texts) / np.log(2))
