"""EAGLE drafts: one decoder layer that continues the target's features instead of its text.

At position t the draft reads the target's last feature f_t, the one that the output layer reads, together with the
token that was chosen after it (Li et al., ICML 2024, EAGLE), and predicts the next feature:

    h_t = W [embedding(x_{t+1}); f_t] + b,        f^_{t+1} = layer(h_{<=t}),        q(x_{t+2}) = head(f^_{t+1}),

with the target's own frozen embedding and output layer. Beyond the first drafted token f^ stands in for f. For targets
that read pictures, h of the visual tokens is compressed before the layer reads it (EagleVLM with a compressor, Huang et
al., 2025, SpecVLM); the target still reads all of them.
"""

from __future__ import annotations

from copy import deepcopy
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import JobError, UsageError
from kdbench.losses.divergences import ce_soft
from kdbench.losses.tokens import IGNORE
from kdbench.tracks.decoding.blocks.compression import Compressor
from kdbench.tracks.decoding.data.pictures import visual_mask
from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.tracks.llm.networks.models import body_and_head


def parts_of(target: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Decoder and output layer of a target. Raises ``UsageError`` where a layer cannot be built like one of its own."""
    parts = body_and_head(target)
    if parts is None or not hasattr(parts[0], "layers") or not hasattr(parts[0], "rotary_emb"):
        raise UsageError(f"EAGLE drafts are made for decoders with rotary positions, not for a {type(target).__name__}")
    return parts


def spoken(head: nn.Module, states: Tensor) -> Tensor:
    """Logits (..., V) float32 of features (..., D), by an output layer that may be of another precision."""
    return head(states.to(head.weight.dtype)).float()


@torch.no_grad()
def read(target: nn.Module, batch: TextBatch) -> tuple[Tensor, Tensor]:
    """Embeddings and features (B, L, D) that a target has of a batch; pictures are read with it."""
    own = getattr(target, "read", None)
    if own is not None:
        return own(batch)
    embeddings = target.get_input_embeddings()(batch.input_ids)
    body, _ = parts_of(target)
    output = body(inputs_embeds=embeddings, attention_mask=batch.attention_mask, use_cache=False)
    return embeddings, output.last_hidden_state


class Prompted(NamedTuple):
    """What the layer reads: visual tokens first, then the others; what sees what is decided by positions."""

    inputs: Tensor
    """(B, S, D)."""
    positions: Tensor
    """(B, S) float32."""
    present: Tensor
    """(B, S) bool."""
    text: Tensor
    """(B, T) int64: columns that the last T inputs were before."""
    price: Tensor
    """() of the compression; see :class:`~kdbench.tracks.decoding.blocks.compression.Compressed`."""
    choice: Tensor
    """(B,) int64 way of each row."""
    left: Tensor
    """(B,) int64 visual tokens that are left of each row."""

    @property
    def visible(self) -> Tensor:
        """(B, S, S) bool: inputs that each input sees, those not after it."""
        return self.positions[:, None, :] <= self.positions[:, :, None]


class Eagle(nn.Module):
    """The trained part of the draft: fusion, one decoder layer, and a compressor of visual tokens."""

    def __init__(self, target: nn.Module, ways: tuple[str, ...] = ("none",), **compression: Any) -> None:
        """A layer of random weights like those of ``target``; ``ways`` and ``compression`` as of a ``Compressor``."""
        super().__init__()
        body, _ = parts_of(target)
        config = deepcopy(body.config)
        config.num_hidden_layers = 1
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:1]
        self.config, width = config, config.hidden_size
        self.about = {"ways": list(ways), **compression}
        """What it is made with again."""
        self.visual_id: int | None = getattr(target.config, "image_token_id", None)
        self.visual_tokens = 0 if self.visual_id is None else int(target.visual_tokens)
        """Tokens of a picture, as the target reads it."""
        self.fusion = nn.Linear(2 * width, width)
        self.layer = type(body.layers[0])(config, 0)
        self.rotary = type(body.rotary_emb)(config)
        token_flops = 2.0 * sum(parameter.numel() for parameter in self.layer.parameters())
        heads = config.num_attention_heads
        self.compressor = Compressor(ways, width, token_flops=token_flops, heads=heads, **compression)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Any = None,
        use_cache: bool = False,
    ) -> Any:
        """Features f^ as ``.last_hidden_state`` (B, S, D), of fused inputs; called as decoders of transformers are."""
        states = self.layer(
            inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_embeddings=self.rotary(inputs_embeds, position_ids),
        )
        return SimpleNamespace(last_hidden_state=states)

    def fuse(self, embeddings: Tensor, features: Tensor) -> Tensor:
        """h (..., D) of the embeddings (..., D) of tokens and the features (..., D) that come before them."""
        return self.fusion(torch.cat([embeddings, features], dim=-1).to(self.fusion.weight.dtype))

    def prompted(
        self,
        fused: Tensor,
        ids: Tensor,
        present: Tensor,
        asked: Tensor,
        generator: torch.Generator | None = None,
    ) -> Prompted:
        """Fused inputs (B, P, D) with their visual tokens compressed.

        ``ids`` (B, P) are the tokens that they embed, ``present`` (B, P) is False for padding and ``asked`` (B, P) True
        for the question that compressors look at. Raises ``JobError`` unless all rows have equally many visual tokens.
        """
        positions = (present.cumsum(dim=1) - 1).clamp_min(0).float()
        visual = torch.zeros_like(present)
        if self.visual_id is not None:
            visual = visual_mask(ids.masked_fill(~present, -1), self.visual_id, self.visual_tokens)
        counts = visual.sum(dim=1)
        count = int(counts[0])
        if bool((counts != count).any()):
            raise JobError("rows with different numbers of visual tokens cannot be read together")
        order = visual.logical_not().to(torch.int8).argsort(dim=1, stable=True)
        here, text = order[:, :count], order[:, count:]
        rest, places = _pick(fused, text), positions.gather(1, text)
        whole = present.gather(1, text)
        if count == 0:
            none = counts.new_zeros(len(counts))
            return Prompted(rest, places, whole, text, fused.new_zeros(()), none, none)
        weights = (asked & ~visual).to(fused.dtype)[..., None]
        question = (fused * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
        short = self.compressor(_pick(fused, here), positions.gather(1, here), question, generator)
        return Prompted(
            torch.cat([short.tokens, rest], dim=1),
            torch.cat([short.positions, places], dim=1),
            torch.cat([short.present, whole], dim=1),
            text,
            short.price,
            short.choice,
            short.present.sum(dim=1),
        )


def _pick(values: Tensor, columns: Tensor) -> Tensor:
    """Columns (B, T) of values (B, P, D)."""
    return values.gather(1, columns[..., None].expand(-1, -1, values.shape[-1]))


class Taught(NamedTuple):
    """What a target has to say of a batch: features and logits at the N positions that a draft predicts."""

    embeddings: Tensor
    """(B, L, D) of all tokens, those of pictures included."""
    features: Tensor
    """(B, L, D)."""
    logits: Tensor
    """(N, V) float32."""


def predicted(batch: TextBatch) -> Tensor:
    """(B, L-1) bool: inputs t of the draft whose prediction, of the token at t + 2, is scored."""
    return F.pad(batch.labels[:, 2:] != IGNORE, (0, 1))


@torch.no_grad()
def teach(target: nn.Module, batch: TextBatch) -> Taught:
    """One forward of the target over a batch, of which nothing is kept."""
    embeddings, features = read(target, batch)
    _, head = parts_of(target)
    return Taught(embeddings, features, spoken(head, features[:, 1:][predicted(batch)]))


def eagle_loss(
    eagle: Eagle,
    head: nn.Module,
    batch: TextBatch,
    taught: Taught,
    *,
    w_cls: float,
    w_reg: float,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> tuple[dict[str, Tensor], Prompted]:
    """``cls``: ``w_cls CE(softmax p, q)``, ``reg``: ``w_reg SmoothL1(f^, f)``, means over the scored tokens; float32.

    With uniform noise in [-noise, noise] on the features that the draft reads, as in EAGLE, so that it copes with the
    errors of its own. Also gives what the layer has read. ``generator`` serves the noise and the router.
    """
    features = taught.features
    if noise > 0:
        drawn = torch.rand(features.shape, generator=generator).to(features)
        features = features + noise * (2 * drawn - 1)
    wanted = predicted(batch)
    begins = (batch.labels != IGNORE).to(torch.int8).argmax(dim=1)
    columns = torch.arange(wanted.shape[1], device=wanted.device)
    present = batch.attention_mask[:, 1:].bool()
    fused = eagle.fuse(taught.embeddings[:, 1:], features[:, :-1])
    # as when it decodes: the last token of the prompt comes with the first round, not with the question
    asked = present & (columns < begins[:, None] - 2)
    read = eagle.prompted(fused, batch.input_ids[:, 1:], present, asked, generator)
    seen = read.visible & read.present[:, None, :]
    seen |= torch.eye(seen.shape[1], dtype=torch.bool, device=seen.device)
    mask = torch.zeros_like(seen, dtype=fused.dtype).masked_fill_(~seen, torch.finfo(fused.dtype).min)
    states = eagle(read.inputs, mask[:, None], read.positions).last_hidden_state
    guessed = states[:, -read.text.shape[1] :][wanted.gather(1, read.text)]
    losses = {
        "cls": w_cls * ce_soft(spoken(head, guessed), taught.logits).mean(),
        "reg": w_reg * F.smooth_l1_loss(guessed.float(), taught.features[:, 1:][wanted].float()),
    }
    return losses, read
