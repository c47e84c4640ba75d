"""Encoder-decoders of the blocks of Llama: rotary positions in both parts, grouped-query attention, RMSNorm, SwiGLU.

The encoder reads the source once, every token seeing every other; the decoder writes the target behind the start
token and looks at the encoder's output through cross-attention without positions. Keys and values of the source are
computed once and do not grow; those of the decoder grow with what is written alone.

Networks here say themselves how the track reads and continues rows (:meth:`EncoderDecoder.scored_logits`,
:meth:`EncoderDecoder.stepper`). Importing this module makes the automatic classes of transformers know the type.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    GenerationMixin,
    LlamaConfig,
)
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from kdbench.tracks.llm.blocks.pairs import split_rows
from kdbench.tracks.llm.data.encoding import TextBatch


class EncoderDecoderConfig(LlamaConfig):
    """As Llama's; ``num_hidden_layers`` are those of the decoder."""

    model_type = "kdbench-encoder-decoder"
    num_encoder_layers: int = 4
    is_encoder_decoder: bool = True


class CrossAttention(nn.Module):
    """Grouped-query attention of the target (B, D, W) to the encoded source (B, E, W), without positions."""

    def __init__(self, config: EncoderDecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        width, of_keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, of_keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, of_keys, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)

    def _heads(self, states: Tensor) -> Tensor:
        """(B, L, H * D) to (B, H, L, D)."""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def _remembered(self, memory: Tensor, cache: EncoderDecoderCache | None) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, E, D) of the source: computed at the first token, kept for the others."""
        if cache is not None and cache.is_updated.get(self.layer):
            kept = cache.cross_attention_cache.layers[self.layer]
            return kept.keys, kept.values
        keys, values = self._heads(self.k_proj(memory)), self._heads(self.v_proj(memory))
        if cache is not None:
            keys, values = cache.cross_attention_cache.update(keys, values, self.layer)
            cache.is_updated[self.layer] = True
        return keys, values

    def forward(self, states: Tensor, memory: Tensor, mask: Tensor | None, cache: EncoderDecoderCache | None) -> Tensor:
        keys, values = self._remembered(memory, cache)
        queries = self._heads(self.q_proj(states))
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)
        return self.o_proj(seen.transpose(1, 2).flatten(2))


class DecoderLayer(LlamaDecoderLayer):
    """Causal attention, cross-attention, feed-forward; each behind its norm and beside the residual."""

    def __init__(self, config: EncoderDecoderConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.cross_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.cross_attn = CrossAttention(config, layer_idx)

    def forward(
        self,
        states: Tensor,
        memory: Tensor,
        masks: tuple[Tensor | None, Tensor | None],
        positions: tuple[Tensor, Tensor],
        cache: EncoderDecoderCache | None,
    ) -> Tensor:
        """``masks`` of the causal and of the cross-attention; ``positions`` are cosines and sines."""
        own = None if cache is None else cache.self_attention_cache
        attended, _ = self.self_attn(
            hidden_states=self.input_layernorm(states),
            attention_mask=masks[0],
            position_embeddings=positions,
            past_key_values=own,
        )
        states = states + attended
        states = states + self.cross_attn(self.cross_layernorm(states), memory, masks[1], cache)
        return states + self.mlp(self.post_attention_layernorm(states))


class EncoderDecoder(LlamaPreTrainedModel, GenerationMixin):
    """``logits`` (B, D, V) of the target given the source; position j predicts what follows decoder input j."""

    config_class = EncoderDecoderConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}
    _no_split_modules = ["LlamaDecoderLayer", "DecoderLayer"]

    def __init__(self, config: EncoderDecoderConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.encoder_layers = nn.ModuleList(LlamaDecoderLayer(config, i) for i in range(config.num_encoder_layers))
        for layer in self.encoder_layers:
            layer.self_attn.is_causal = False
        self.encoder_norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    # --- the two parts --------------------------------------------------------------------------------------------

    def encode(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Source (B, E) to its encoding (B, E, W). ``mask`` (B, E) is 1 for tokens, wherever the padding is.

        Positions count the tokens of a row from its middle: -floor((n - 1) / 2) to ceil((n - 1) / 2) for n tokens.
        """
        mask = torch.ones_like(ids) if mask is None else mask
        states = self.embed_tokens(ids)
        seen = create_bidirectional_mask(config=self.config, inputs_embeds=states, attention_mask=mask)
        rotation = self.rotary_emb(states, position_ids=centred_positions(mask))
        for layer in self.encoder_layers:
            states = layer(states, attention_mask=seen, position_embeddings=rotation)
        return self.encoder_norm(states)

    def decode(
        self,
        ids: Tensor,
        memory: Tensor,
        source_mask: Tensor | None = None,
        mask: Tensor | None = None,
        cache: EncoderDecoderCache | None = None,
    ) -> Tensor:
        """Decoder inputs (B, D) and an encoded source (B, E, W) to hidden states (B, D, W).

        With a ``cache`` the inputs follow those that it knows. ``source_mask`` (B, E) and ``mask`` (B, D with those
        that the cache knows) are 1 for tokens; without them everything is one.
        """
        states = self.embed_tokens(ids)
        own: Cache | None = None if cache is None else cache.self_attention_cache
        begin = 0 if own is None else own.get_seq_length()
        positions = torch.arange(begin, begin + ids.shape[1], device=ids.device)[None]
        causal = create_causal_mask(
            config=self.config,
            inputs_embeds=states,
            attention_mask=mask,
            past_key_values=own,
            position_ids=positions,
        )
        cross = None if source_mask is None else source_mask.bool()[:, None, None, :]
        rotation = self.rotary_emb(states, position_ids=positions)
        for layer in self.layers:
            states = layer(states, memory, (causal, cross), rotation, cache)
        return self.norm(states)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: BaseModelOutput | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """As sequence-to-sequence models of transformers."""
        del kwargs
        memory = self.encode(input_ids, attention_mask) if encoder_outputs is None else encoder_outputs[0]
        if use_cache and past_key_values is None:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        states = self.decode(decoder_input_ids, memory, attention_mask, decoder_attention_mask, past_key_values)
        return Seq2SeqLMOutput(
            logits=self.lm_head(states), past_key_values=past_key_values, encoder_last_hidden_state=memory
        )

    def _prepare_text_encoder_decoder_kwargs_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any], **_: Any
    ) -> dict[str, Any]:
        """For ``generate`` of transformers: the source is encoded once."""
        memory = self.encode(inputs_tensor, model_kwargs.get("attention_mask"))
        return {**model_kwargs, "encoder_outputs": BaseModelOutput(last_hidden_state=memory)}

    # --- what the track asks ----------------------------------------------------------------------------------------

    def scored_logits(self, batch: TextBatch) -> Tensor:
        """See :func:`kdbench.tracks.llm.networks.models.scored_logits`.

        What precedes a row's first scored token is its source. Rows of which every token
        is scored have the start token as their source.
        """
        pairs = split_rows(batch)
        memory = self.encode(pairs.source, pairs.source_mask)
        states = self.decode(pairs.decoder_inputs(self.config.bos_token_id), memory, pairs.source_mask)
        return self.lm_head(states[pairs.scored])

    def stepper(self, ids: Tensor, mask: Tensor) -> EncoderDecoderStepper:
        """See :func:`kdbench.tracks.llm.generation.stepper`: the prompts are the source."""
        return EncoderDecoderStepper(self, ids, mask)


class EncoderDecoderStepper:
    """One pass of the decoder per new token; the source is encoded once."""

    def __init__(self, model: EncoderDecoder, ids: Tensor, mask: Tensor) -> None:
        self.model, self.mask = model, mask
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.memory = model.encode(ids, mask)
        self.logits = self(torch.full_like(ids[:, 0], model.config.bos_token_id))

    def __call__(self, token: Tensor) -> Tensor:
        """Logits (B, V) float32 after one more token (B,) per row."""
        states = self.model.decode(token[:, None], self.memory, self.mask, cache=self.cache)
        return self.model.lm_head(states[:, -1]).float()

    def keep(self, which: Tensor) -> None:
        """Go on with the rows of a mask only."""
        self.cache.batch_select_indices(which.nonzero().squeeze(1))
        self.memory, self.mask = self.memory[which], self.mask[which]


def centred_positions(mask: Tensor) -> Tensor:
    """Positions (B, E) of the tokens of a mask (B, E), 0 at the middle token of each row; padding has any.

    >>> centred_positions(torch.tensor([[0, 1, 1, 1, 1]])).tolist()
    [[-2, -1, 0, 1, 2]]
    """
    return mask.cumsum(dim=1) - 1 - torch.div(mask.sum(dim=1, keepdim=True) - 1, 2, rounding_mode="floor")


AutoConfig.register(EncoderDecoderConfig.model_type, EncoderDecoderConfig, exist_ok=True)
AutoModelForSeq2SeqLM.register(EncoderDecoderConfig, EncoderDecoder, exist_ok=True)
