"""A causal language model whose position encoding is a choice, everything else being equal.

Importing this module makes the automatic classes of transformers know the type, so that ``from_pretrained`` reads what
``save_pretrained`` wrote.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.training.positions import PositionEncoding
from kdbench.training.transformer import Block, initialise


class PositionalConfig(PreTrainedConfig):
    """A transformer of the kind of GPT-2 and one position encoding."""

    model_type = "kdbench-positional"
    vocab_size: int = 1024
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 256
    tie_word_embeddings: bool = False
    train_length: int = 64
    """Positions that training sees."""
    max_position_embeddings: int = 2048
    """Positions are below it."""
    encoding: str = "seqpe"
    encoding_options: dict[str, Any] | None = None
    """Of :class:`~kdbench.training.positions.PositionEncoding`, beside sizes."""


class PositionalLM(PreTrainedModel, GenerationMixin):
    """Blocks with pre-norm, GELU and no dropout; positions come from :class:`PositionEncoding` alone."""

    config_class = PositionalConfig
    _tied_weights_keys = {"head.weight": "tokens.weight"}

    def __init__(self, config: PositionalConfig) -> None:
        super().__init__(config)
        width, layers = config.hidden_size, config.num_hidden_layers
        self.tokens = nn.Embedding(config.vocab_size, width)
        self.blocks = nn.ModuleList(
            Block(width, config.num_attention_heads, config.intermediate_size) for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, config.vocab_size, bias=False)
        initialise(self)
        self.positions = PositionEncoding(
            config.encoding,
            width=width,
            heads=config.num_attention_heads,
            layers=layers,
            extent=(config.train_length,),
            limit=config.max_position_embeddings,
            **(config.encoding_options or {}),
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Weights are initialised where they are made."""

    def get_input_embeddings(self) -> nn.Module:
        return self.tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of tokens (B, T); ``attention_mask`` (B, S) covers what the cache holds, too.

        Positions count the tokens of a row that are no padding. ``position_ids`` (B or 1, T) shift a row so that its
        last token is at the last of them.
        """
        cache = None if use_cache is False else past_key_values
        hidden = self.hidden(input_ids, attention_mask, position_ids, cache)
        return CausalLMOutputWithPast(logits=self.head(hidden[:, -logits_to_keep:]), past_key_values=past_key_values)

    def hidden(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
    ) -> Tensor:
        """(B, T, W): what the output layer reads; arguments as in :meth:`forward`."""
        batch, new = input_ids.shape
        before = cache.get_seq_length() if cache is not None else 0
        if attention_mask is None:
            attention_mask = input_ids.new_ones(batch, before + new)
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        if position_ids is not None:
            positions = (positions + position_ids[:, -1:] - positions[:, -1:]).clamp(min=0)
        if bool((positions == positions[:1]).all()):
            positions = positions[:1]  # encoded once for all rows
        said = self.positions(positions[..., None], new)
        x = self.tokens(input_ids)
        if said.added is not None:
            x = x + said.added
        unseen = unseen_keys(attention_mask, new, x.dtype)
        for layer, block in enumerate(self.blocks):
            bias = said.bias(layer)
            remember = None if cache is None else partial(cache.update, layer_idx=layer)
            x = block(x, unseen if bias is None else unseen + bias, said.adapt(layer), remember)
        normed: Tensor = self.norm(x)
        return normed

    def scored_logits(self, batch: TextBatch, position_ids: Tensor | None = None) -> Tensor:
        """Logits (N, V) at the scored positions alone; the track's forwards go through this."""
        hidden = self.hidden(batch.input_ids, batch.attention_mask, position_ids)
        logits: Tensor = self.head(hidden[:, :-1][batch.scored])
        return logits


def unseen_keys(attention_mask: Tensor, new: int, dtype: torch.dtype) -> Tensor:
    """(B, 1, T, S): the smallest number where the last ``new`` tokens must not look, else 0.

    They look back, and not at padding; padding looks at itself, for it must look at something.
    """
    length = attention_mask.shape[1]
    back = torch.ones(new, length, dtype=torch.bool, device=attention_mask.device).tril(length - new)
    itself = back ^ back.tril(length - new - 1)
    seen = (attention_mask.bool()[:, None, None] & back) | itself
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


AutoConfig.register(PositionalConfig.model_type, PositionalConfig, exist_ok=True)
AutoModelForCausalLM.register(PositionalConfig, PositionalLM, exist_ok=True)
