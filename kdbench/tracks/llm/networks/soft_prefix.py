"""A frozen language model that reads vectors in place of the first part of a row.

The *reader* is a causal language model that nothing changes. What stands before a row's cut (demonstrations, the
beginning of a text) is its context; the reader gets ``start, v_1, ..., v_m, rest`` instead of ``start, context, rest``,
with positions counted from 0 without a gap. The vectors come from a *distiller*, a small transformer that reads the
context followed by m learned embeddings and gives its last m hidden states, through a linear layer and tanh where the
widths differ (Li et al., ICLR 2024, section 3); or, without a distiller, they are fitted to the labels that the context
shows by gradient descent on each context anew (prompt tuning; Lester et al., EMNLP 2021); or there are none.

Networks here say themselves how the track reads rows (:meth:`SoftPrefix.scored_logits`). Importing this module makes
the automatic classes of transformers know the type.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from kdbench.errors import JobError
from kdbench.losses.tokens import IGNORE
from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.tracks.llm.networks.models import body_and_head


@dataclass
class Cut:
    """B rows in two parts, without the start token that they all begin with."""

    context: Tensor
    """(B, C) int64, padded on the left: everything before the cut."""
    context_mask: Tensor
    """(B, C) int64, 1 for tokens."""
    rest: Tensor
    """(B, R) int64, padded on the right."""
    rest_mask: Tensor
    """(B, R) int64, 1 for tokens."""
    labels: Tensor
    """(B, R) int64 aligned with ``rest``, -100 where ignored."""
    places: Tensor
    """(B, R) int64: where each token of ``rest`` stands in its row."""


def cut_rows(batch: TextBatch, cuts: Tensor) -> Cut:
    """Rows cut before their position ``cuts`` (B,), at least 1: the start token belongs to neither part."""
    lengths, width = batch.attention_mask.sum(dim=1), batch.input_ids.shape[1]
    device = batch.input_ids.device
    before, after = int(cuts.max()) - 1, max(1, int((lengths - cuts).max()))
    left = torch.arange(before, device=device) - (before - cuts)[:, None]
    right = torch.arange(after, device=device) + cuts[:, None]
    present, places = right < lengths[:, None], right.clamp(max=width - 1)
    return Cut(
        batch.input_ids.gather(1, left.clamp(min=0)),
        (left >= 1).long(),
        batch.input_ids.gather(1, places),
        present.long(),
        batch.labels.gather(1, places).masked_fill(~present, IGNORE),
        places,
    )


class SoftPrefixConfig(PretrainedConfig):
    """Configurations of the two networks, and how many vectors stand for a context."""

    model_type = "kdbench-soft-prefix"

    def __init__(
        self,
        reader: dict[str, Any] | None = None,
        distiller: dict[str, Any] | None = None,
        vectors: int = 8,
        tuning_steps: int = 0,
        tuning_lr: float = 0.1,
        separator: int = 0,
        arrow: int = 0,
        **kwargs: Any,
    ) -> None:
        """``separator`` ends a demonstration, ``arrow`` stands before its label (token ids)."""
        super().__init__(**kwargs)
        self.reader, self.distiller, self.vectors = reader or {}, distiller, vectors
        self.tuning_steps, self.tuning_lr = tuning_steps, tuning_lr
        self.separator, self.arrow = separator, arrow


class SoftPrefix(PreTrainedModel):
    """A frozen reader of vectors in place of contexts; see the module's description."""

    config_class = SoftPrefixConfig
    base_model_prefix = ""
    main_input_name = "input_ids"

    def __init__(self, config: SoftPrefixConfig) -> None:
        super().__init__(config)
        settings = dict(config.reader)
        self.reader = AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
        if body_and_head(self.reader) is None:
            raise JobError(f"a {type(self.reader).__name__} does not make its logits from hidden states alone")
        width = self.reader.get_input_embeddings().weight.shape[1]
        self.distiller: nn.Module | None = None
        if config.distiller is not None:
            settings = dict(config.distiller)
            self.distiller = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
            narrow = self.distiller.get_input_embeddings().weight.shape[1]
            self.queries = nn.Parameter(torch.empty(config.vectors, narrow))
            self.adapter = nn.Identity() if narrow == width else nn.Sequential(nn.Linear(narrow, width), nn.Tanh())
        elif config.vectors:
            self.queries = nn.Parameter(torch.empty(config.vectors, width))
        self.forget()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, SoftPrefix) and module.config.vectors:
            nn.init.normal_(module.queries, std=0.02)
        elif isinstance(module, nn.Linear) and module in list(getattr(self, "adapter", ())):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)

    def train(self, mode: bool = True) -> SoftPrefix:
        """As of any module, but the reader is always in evaluation mode and without gradients."""
        super().train(mode)
        self.reader.requires_grad_(False).eval()
        return self

    def forget(self) -> None:
        """Forget the vectors of earlier contexts."""
        self._known: dict[bytes, Tensor] = {}
        self._known_of: list[Any] = []

    # --- vectors --------------------------------------------------------------------------------------------------

    def distill(self, context: Tensor, mask: Tensor) -> Tensor:
        """Contexts (B, C), padded on the left as ``mask`` (B, C) says, to their vectors (B, m, W), with gradient."""
        assert self.distiller is not None
        asked = self.queries.expand(len(context), -1, -1)
        embeds = torch.cat([self.distiller.get_input_embeddings()(context), asked], dim=1)
        mask = torch.cat([mask, mask.new_ones(asked.shape[:2])], dim=1)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        hidden = self.distiller(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        return self.adapter(hidden[:, -asked.shape[1] :])

    def tune(self, context: Tensor, mask: Tensor) -> Tensor:
        """Vectors (B, m, W) that make the reader give each context's own labels, by Adam on each context apart."""
        rows, owner = [], []
        for i, (ids, present) in enumerate(zip(context.tolist(), mask.tolist(), strict=True)):
            shown: list[int] = []
            for token, real in zip(ids, present, strict=True):
                shown += [token] if real else []
                if real and token == self.config.separator:
                    rows.append(shown[:-1])
                    owner.append(i)
                    shown = []
        if not rows:
            return self.queries.detach().expand(len(context), -1, -1)
        batch = labelled(rows, self.config.arrow, context.device)
        places = torch.tensor(owner, device=context.device)
        with torch.enable_grad():
            vectors = self.queries.detach().repeat(len(context), 1, 1).requires_grad_(True)
            optimizer = torch.optim.Adam([vectors], lr=self.config.tuning_lr)
            for _ in range(self.config.tuning_steps):
                states, scored = self.states(vectors[places], batch), batch.labels != IGNORE
                logits = self.reader.get_output_embeddings()(states[:, :-1][scored])
                nll = nn.functional.cross_entropy(logits.float(), batch.labels[scored], reduction="sum")
                optimizer.zero_grad()
                (nll / len(rows) * len(context)).backward()  # the mean over a context's demonstrations, summed
                optimizer.step()
        return vectors.detach()

    def vectors(self, context: Tensor, mask: Tensor) -> Tensor:
        """Vectors (B, m, W) of contexts (B, C): each different one is read once.

        In evaluation mode and without gradients they are remembered, until a weight changes or :meth:`forget`.
        """
        if not self.config.vectors:
            width = self.reader.get_input_embeddings().weight.shape[1]
            return torch.empty(len(context), 0, width, device=context.device)
        different, place = torch.unique(torch.cat([mask, context * mask], dim=1), dim=0, return_inverse=True)
        masks, contexts = different.chunk(2, dim=1)
        compute = self.tune if self.distiller is None else self.distill
        if self.training or torch.is_grad_enabled():
            return compute(contexts, masks)[place]
        state = [context.device, *((p.data_ptr(), p._version) for p in self.parameters())]
        if state != self._known_of:
            self.forget()
            self._known_of = state
        keys = [ids[real.bool()].cpu().numpy().tobytes() for ids, real in zip(contexts, masks, strict=True)]
        new = [i for i, key in enumerate(keys) if key not in self._known]
        if new:
            made = compute(contexts[new], masks[new])
            self._known |= {keys[i]: vectors for i, vectors in zip(new, made, strict=True)}
        return torch.stack([self._known[key] for key in keys])[place]

    # --- reading --------------------------------------------------------------------------------------------------

    def states(self, vectors: Tensor, cut: Cut) -> Tensor:
        """Hidden states (B, 1 + R, W) of the reader at the last place before the rest and at each of its tokens.

        ``vectors`` (B, m, W). The state before token j of the rest, which predicts it, is at j; its own is at j + 1.
        """
        body, _ = body_and_head(self.reader)  # type: ignore[misc]
        embed = self.reader.get_input_embeddings()
        start = embed(torch.full_like(cut.rest[:, :1], self.config.bos_token_id))
        embeds = torch.cat([start, vectors.to(start.dtype), embed(cut.rest)], dim=1)
        count = 1 + vectors.shape[1]
        mask = torch.cat([cut.rest_mask.new_ones(len(embeds), count), cut.rest_mask], dim=1)
        positions = torch.arange(embeds.shape[1], device=embeds.device)[None]
        hidden = body(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False)
        return hidden.last_hidden_state[:, count - 1 :]

    def cuts(self, batch: TextBatch) -> Tensor:
        """(B,) first position of the query of each row: after the last separator that is before a scored token."""
        before = (batch.labels != IGNORE).cumsum(dim=1) == 0
        ends = (batch.input_ids == self.config.separator) & before & batch.attention_mask.bool()
        places = torch.arange(1, batch.input_ids.shape[1] + 1, device=ends.device)
        return (ends * places).amax(dim=1).clamp(min=1)

    def scored_logits(self, batch: TextBatch) -> Tensor:
        """See :func:`kdbench.tracks.llm.networks.models.scored_logits`; the demonstrations of a row are its context."""
        cut = cut_rows(batch, self.cuts(batch))
        states = self.states(self.vectors(cut.context, cut.context_mask), cut)
        return self.reader.get_output_embeddings()(states[:, :-1][cut.labels != IGNORE])


def labelled(rows: list[list[int]], arrow: int, device: torch.device) -> Cut:
    """Demonstrations ``input, arrow, label`` as the rest of rows without a context, of which the label is scored."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    present = torch.arange(width, device=device) < torch.tensor([len(row) for row in rows], device=device)[:, None]
    seen = (ids == arrow).cumsum(dim=1) > 0
    labels = ids.masked_fill(~present | ~seen | (ids == arrow), IGNORE)
    nothing = ids[:, :0]
    places = torch.arange(1, width + 1, device=device).expand_as(ids)
    return Cut(nothing, nothing, ids, present.long(), labels, places)


def with_prefix(reader: nn.Module, distiller: nn.Module | None, tokens: dict[str, int], **settings: Any) -> SoftPrefix:
    """A soft prefix for copies of a reader and a distiller's body (of a causal language model); their weights are kept.

    ``tokens`` are the ids of ``separator`` and ``arrow``, ``settings`` other fields of :class:`SoftPrefixConfig`. What
    is new is drawn from the global generators: the queries are embeddings of random tokens, and the adapter gives the
    vectors the size of the reader's embeddings, beside which larger ones would drown all that the reader adds to them.
    """
    body = None if distiller is None else distiller.base_model
    ids = {name: getattr(reader.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = SoftPrefixConfig(
        reader=_settings(reader), distiller=None if body is None else _settings(body), **tokens, **ids, **settings
    )
    model = SoftPrefix(config)
    model.reader.load_state_dict(reader.state_dict())
    if body is not None:
        model.distiller.load_state_dict(body.state_dict())  # type: ignore[union-attr]
    if config.vectors:
        table = (reader if body is None else body).get_input_embeddings().weight.detach().cpu()
        with torch.no_grad():
            model.queries.copy_(table[torch.randint(len(table), (config.vectors,))])
    if body is not None and isinstance(model.adapter, nn.Sequential):
        size = reader.get_input_embeddings().weight.detach().square().mean().sqrt().item()
        linear = model.adapter[0]  # reads normalised states, whose components are about 1
        nn.init.normal_(linear.weight, std=size / linear.in_features**0.5)
    return model.to(next(reader.parameters()).device)


def _settings(network: nn.Module) -> dict[str, Any]:
    """A network's configuration as plain values, for :meth:`AutoConfig.for_model`."""
    found: dict[str, Any] = deepcopy(network.config.to_dict())
    return found


AutoConfig.register(SoftPrefixConfig.model_type, SoftPrefixConfig, exist_ok=True)
AutoModelForCausalLM.register(SoftPrefixConfig, SoftPrefix, exist_ok=True)
