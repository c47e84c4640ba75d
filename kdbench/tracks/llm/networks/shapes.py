"""Shapes of encoder-decoders: how many layers go where, and feed-forward blocks that make up for parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from kdbench.errors import UsageError
from kdbench.task import count_parameters
from kdbench.tracks.llm.networks.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from kdbench.tracks.llm.networks.models import spread_embeddings
from kdbench.tracks.llm.networks.tokenizers import pad_id, start_id
from kdbench.tracks.llm.spec import SPREAD

NARROWEST = 4
"""Hidden width of a feed-forward block below which a shape is refused."""


@dataclass(frozen=True)
class Shape:
    """Of an encoder-decoder."""

    encoder_layers: int
    decoder_layers: int
    width: int
    heads: int
    key_heads: int
    """Heads of keys and values: grouped-query attention where they are fewer."""
    mlp: int
    """Hidden width of the feed-forward blocks."""
    positions: int = 512
    tied: bool = False
    embedding: float = SPREAD
    """Standard deviation of the first embeddings of tokens, as that of :class:`~kdbench.tracks.llm.spec.Net`."""
    spread: float = SPREAD
    """Of the first weights of all else."""


def split_layers(layers: int, share: float) -> tuple[int, int]:
    """Layers of encoder and decoder: ``share`` of them, rounded to the nearest, and the rest; at least one each.

    >>> split_layers(6, 2 / 3), split_layers(6, 1 / 2), split_layers(2, 0.9)
    ((4, 2), (3, 3), (1, 1))
    """
    encoder = min(max(1, round(share * layers)), layers - 1)
    return encoder, layers - encoder


def build(shape: Shape, tokenizer: Any, vocabulary: int | None = None) -> EncoderDecoder:
    """A network with random weights from the global generators. ``vocabulary`` defaults to the tokenizer's."""
    start = start_id(tokenizer)
    model = EncoderDecoder(
        EncoderDecoderConfig(
            vocab_size=len(tokenizer) if vocabulary is None else vocabulary,
            hidden_size=shape.width,
            num_encoder_layers=shape.encoder_layers,
            num_hidden_layers=shape.decoder_layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_heads,
            intermediate_size=shape.mlp,
            max_position_embeddings=shape.positions,
            tie_word_embeddings=shape.tied,
            pad_token_id=pad_id(tokenizer),
            bos_token_id=start,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=start,
            initializer_range=shape.spread,
        )
    )
    spread_embeddings(model, shape.embedding, shape.spread)
    return model


def matched(shape: Shape, parameters: int, tokenizer: Any, vocabulary: int | None = None) -> Shape:
    """The shape with the feed-forward width that brings its parameters closest to ``parameters``.

    Raises ``UsageError`` where the rest of the network has more than that already.
    """

    def count(mlp: int) -> int:
        with torch.device("meta"):
            return count_parameters(build(replace(shape, mlp=mlp), tokenizer, vocabulary))

    base = count(NARROWEST)
    slope = count(NARROWEST + 1) - base
    mlp = NARROWEST + round((parameters - base) / slope)
    if mlp < NARROWEST:
        raise UsageError(
            f"{shape.encoder_layers} + {shape.decoder_layers} layers of width {shape.width} have {base:,} parameters "
            f"and more, the student that they are to match has {parameters:,}: expected fewer layers or a smaller width"
        )
    return replace(shape, mlp=mlp)
