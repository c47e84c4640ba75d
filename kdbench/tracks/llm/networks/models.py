"""Networks of the track, built from transformers configurations, and forwards that compute no more than is scored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.utils import logging as transformers_logging

from kdbench.errors import JobError
from kdbench.losses.logits import UNLABELLED
from kdbench.losses.tokens import IGNORE, shift_mask
from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.tracks.llm.networks.tokenizers import pad_id, start_id
from kdbench.tracks.llm.spec import Net

transformers_logging.disable_progress_bar()  # a bar per file drowns the log of a job

PLAIN_HEADS = frozenset(
    ("gpt2", "gpt_neo", "gpt_neox", "gptj", "llama", "mistral", "olmo", "olmo2", "opt", "phi", "phi3")
    + ("qwen2", "qwen3", "smollm3", "stablelm", "starcoder2")
)
"""Model types whose logits are exactly ``output embedding(last hidden state)``, without scaling or capping."""


def build(net: Net, tokenizer: Any, *, vocabulary: int | None = None, classes: int | None = None) -> nn.Module:
    """A network with random weights from the global generators; dropout is off everywhere.

    ``vocabulary`` defaults to the tokenizer's. Encoders need ``classes`` and give ``.logits`` (B, C) from the first
    token; taggers need them too and give (B, L, C).
    """
    model = _configured(net, tokenizer, vocabulary, classes)
    spread_embeddings(model, net.embedding, net.spread)
    return model


def spread_embeddings(model: Any, embedding: float, spread: float) -> None:
    """Give the embeddings of tokens of a new network, drawn with the standard deviation ``spread``, their own."""
    if embedding != spread:
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(embedding / spread)


def _configured(net: Net, tokenizer: Any, vocabulary: int | None, classes: int | None) -> Any:
    size = len(tokenizer) if vocabulary is None else vocabulary
    ids = {
        "pad_token_id": pad_id(tokenizer),
        "bos_token_id": start_id(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": net.spread,
    }
    if net.family in ("encoder", "tagger"):
        bert = BertForSequenceClassification if net.family == "encoder" else BertForTokenClassification
        return bert(
            BertConfig(
                vocab_size=size,
                hidden_size=net.width,
                num_hidden_layers=net.layers,
                num_attention_heads=net.heads,
                intermediate_size=net.mlp or 4 * net.width,
                max_position_embeddings=net.positions,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                num_labels=classes,
                **ids,
            )
        )
    if net.family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=size,
                n_embd=net.width,
                n_layer=net.layers,
                n_head=net.heads,
                n_inner=net.mlp or 4 * net.width,
                n_positions=net.positions,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                tie_word_embeddings=net.tied,
                use_cache=False,
                **ids,
            )
        )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=net.width,
            num_hidden_layers=net.layers,
            num_attention_heads=net.heads,
            num_key_value_heads=net.heads,
            intermediate_size=net.mlp or 8 * round(net.width * 8 / 3 / 8),
            max_position_embeddings=net.positions,
            tie_word_embeddings=net.tied,
            use_cache=False,
            **ids,
        )
    )


def body_and_head(model: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """The transformer and the linear layer that makes logits of its last hidden states, where that is all there is.

    None for models whose logits are made in another way (scaled, capped, wrapped): they are called whole.
    """
    own = getattr(model, "body_and_head", None)
    if own is not None:
        return own()
    config = getattr(model, "config", None)
    if type(model).__module__.startswith("transformers.") and getattr(config, "model_type", None) in PLAIN_HEADS:
        head = model.get_output_embeddings()
        if head is not None and model.base_model is not model:
            return model.base_model, head
    return None


def last_block(model: nn.Module) -> list[nn.Parameter]:
    """Parameters with a gradient of a transformer's last block."""
    blocks = next(module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module))
    return [parameter for parameter in blocks[-1].parameters() if parameter.requires_grad]


def scored_logits(model: nn.Module, batch: TextBatch, embeds: Tensor | None = None) -> Tensor:
    """Logits (N, V) at the N positions whose next token is scored, row-major over (B, L-1); one forward.

    Where the model allows it the vocabulary-sized product is computed at those positions only. ``embeds`` (B, L, D)
    stand in for the embeddings of the tokens. A model that reads rows in its own way (an encoder-decoder) has a method
    ``scored_logits(batch)``, and takes no embeddings: ``JobError``.
    """
    own = getattr(model, "scored_logits", None)
    if own is not None:
        if embeds is not None:
            raise JobError(f"a {type(model).__name__} reads tokens, not embeddings")
        return own(batch)
    tokens = {"input_ids": batch.input_ids} if embeds is None else {"inputs_embeds": embeds}
    inputs = {**tokens, "attention_mask": batch.attention_mask, "use_cache": False}
    parts = body_and_head(model)
    if parts is None:
        return model(**inputs).logits[:, :-1][batch.scored]
    body, head = parts
    hidden = body(**inputs).last_hidden_state
    return head(hidden[:, :-1][batch.scored])


def targets_of(batch: TextBatch) -> Tensor:
    """(N,) int64: the tokens that :func:`scored_logits` predicts."""
    targets, mask = shift_mask(batch.labels)
    return targets[mask]


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """(N,) float32 negative log-likelihood in nats of ``targets`` (N,) under ``logits`` (N, V); 0 for target -1.

    >>> import torch
    >>> token_nll(torch.zeros(1, 4), torch.tensor([2])).item()  # log 4
    1.3862943649291992
    """
    return nn.functional.cross_entropy(logits.float(), targets, reduction="none", ignore_index=UNLABELLED)


def tags_of(batch: TextBatch) -> Tensor:
    """(N,) int64 tags of the words of a tagging batch, row-major over (B, L); -1 where a word is unlabelled."""
    return batch.labels[batch.labels != IGNORE]


def word_features(model: nn.Module, batch: TextBatch) -> tuple[Tensor, Tensor]:
    """Features (N, D) that a tagger's linear classifier reads at the words of a batch, and its logits (N, C)."""
    hidden = model.bert(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    features = model.dropout(hidden)[batch.labels != IGNORE].float()
    return features, model.classifier(features)


def tag_logits(model: nn.Module, batch: TextBatch) -> Tensor:
    """Logits (N, C), float32, of a tagger at the words of a batch: the rows of :func:`tags_of`."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return logits[batch.labels != IGNORE].float()


def penultimate(model: nn.Module, batch: TextBatch) -> tuple[Tensor, Tensor]:
    """Embedding (B, D) that an encoder's linear classifier reads, and its logits (B, C)."""
    output = model.bert(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    embedding = model.dropout(output.pooler_output)
    return embedding, model.classifier(embedding)


@torch.no_grad()
def round_to_half(model: nn.Module) -> nn.Module:
    """Round weights to float16 in place, kept as float32: the network that storage in float16 gives back."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.copy_(tensor.half().float())
    return model
