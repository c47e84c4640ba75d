"""Targets that read pictures: LLaVA of transformers, made from a small configuration or loaded by name.

Pictures are tensors (3, H, W) of uint8, which come with the rows (:mod:`kdbench.tracks.decoding.data.pictures`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping

from kdbench.errors import JobError
from kdbench.tracks.decoding.data.pictures import visual_mask
from kdbench.tracks.decoding.spec import Vlm
from kdbench.tracks.llm.data.encoding import TextBatch
from kdbench.tracks.llm.networks.hf import load_model, local_or_hub
from kdbench.tracks.llm.networks.tokenizers import SEP, pad_id, start_id
from kdbench.tracks.llm.spec import Hub

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""Of the red, green and blue values that CLIP was trained on."""


class Llava(LlavaForConditionalGeneration):
    """LLaVA (Liu et al., NeurIPS 2023) that takes rows with their pictures."""

    def body_and_head(self) -> tuple[nn.Module, nn.Module]:
        """The language model and its output layer: what continues a row that has been read."""
        return self.model.language_model, self.lm_head

    @property
    def visual_tokens(self) -> int:
        """Tokens that a picture becomes."""
        return visual_tokens(self.config)

    def embed(self, ids: Tensor, pictures: Tensor | None) -> Tensor:
        """Embeddings (B, L, D) of ``ids`` (B, L), with what ``pictures`` (R, 3, H, W) show at the visual tokens.

        Raises ``JobError`` where the visual tokens are not those of the pictures.
        """
        embeddings = self.get_input_embeddings()(ids)
        each = visual_tokens(self.config)
        visual = visual_mask(ids, self.config.image_token_id, each)
        wanted = int(visual.sum())
        given = 0 if pictures is None else len(pictures) * each
        if wanted != given:
            raise JobError(f"the rows have {wanted} visual tokens, but their pictures give {given} ({each} each)")
        if pictures is None:
            return embeddings
        shown = torch.cat(list(self.get_image_features(self.pixels(pictures)).pooler_output))
        return embeddings.masked_scatter(visual[..., None], shown.to(embeddings.dtype))

    def pixels(self, pictures: Tensor) -> Tensor:
        """Pictures (R, 3, H, W) uint8 as the vision tower reads them: its size, normalised as CLIP does."""
        parameter = next(self.model.vision_tower.parameters())
        values = pictures.to(parameter.device).to(torch.float32) / 255
        size = self.config.vision_config.image_size
        if values.shape[-2:] != (size, size):
            values = nn.functional.interpolate(values, (size, size), mode="bilinear", antialias=True)
        mean, deviation = (torch.tensor(v, device=values.device)[:, None, None] for v in (MEAN, DEVIATION))
        return ((values - mean) / deviation).to(parameter.dtype)

    def read(self, batch: TextBatch) -> tuple[Tensor, Tensor]:
        """Embeddings and last hidden states (B, L, D) of a batch, those that the output layer reads; one forward."""
        embeddings = self.embed(batch.input_ids, getattr(batch, "pictures", None))
        body, _ = self.body_and_head()
        states = body(inputs_embeds=embeddings, attention_mask=batch.attention_mask, use_cache=False)
        return embeddings, states.last_hidden_state

    def scored_logits(self, batch: TextBatch) -> Tensor:
        """Logits (N, V) at the positions whose next token is scored."""
        _, states = self.read(batch)
        return self.lm_head(states[:, :-1][batch.scored])


# transformers finds the names of stored weights by the name of the class: those of LLaVA are older than its networks
register_checkpoint_conversion_mapping("Llava", get_checkpoint_conversion_mapping("llava"), overwrite=True)


def build(net: Vlm, tokenizer: Any) -> Llava:
    """A LLaVA with random weights from the global generators; ``<sep>`` holds the places of visual tokens."""
    ids = {"pad_token_id": pad_id(tokenizer), "bos_token_id": start_id(tokenizer)}
    vision = CLIPVisionConfig(
        hidden_size=net.vision_width,
        intermediate_size=4 * net.vision_width,
        num_hidden_layers=net.vision_layers,
        num_attention_heads=net.vision_heads,
        image_size=net.image,
        patch_size=net.patch,
        projection_dim=net.vision_width,
        initializer_range=net.spread,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=net.width,
        num_hidden_layers=net.layers,
        num_attention_heads=net.heads,
        num_key_value_heads=net.heads,
        intermediate_size=net.mlp or 8 * round(net.width * 8 / 3 / 8),
        max_position_embeddings=net.positions,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=net.spread,
        **ids,
    )
    model = Llava(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=tokenizer.convert_tokens_to_ids(SEP),
            image_seq_length=net.visual_tokens,
            vision_feature_layer=-1,
            initializer_range=net.spread,
        )
    )
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(net.embedding / net.spread)
    return model


def load(hub: Hub, device: torch.device) -> Llava:
    """A LLaVA of the hub, or of a folder that ``save_pretrained`` wrote. Raises ``JobError`` for another model."""
    config = config_of(hub)
    if config.model_type != "llava":
        raise JobError(f"{hub.name!r} is a {config.model_type}, but pictures are read by models of the type llava")
    return load_model(hub, device, trainable=False, auto=Llava)


def stored(folder: Path) -> Llava:
    """A LLaVA that was trained here."""
    return Llava.from_pretrained(folder, dtype=torch.float32)


def config_of(hub: Hub) -> Any:
    """The configuration of a model of the hub or of a folder."""
    return AutoConfig.from_pretrained(
        local_or_hub(hub.name), revision=hub.revision, trust_remote_code=hub.trust_remote_code
    )


def visual_tokens(config: Any) -> int:
    """Tokens that a picture becomes: one a patch, and one for the class token where the model keeps that."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    return side * side + (config.vision_feature_select_strategy == "full")


def placeholder(model: Vlm | Hub, tokenizer: Any) -> str:
    """What a picture is in the text of a prompt: a token that holds the place, as often as there are visual tokens."""
    if isinstance(model, Vlm):
        return SEP * model.visual_tokens
    config = config_of(model)
    return str(tokenizer.convert_ids_to_tokens(config.image_token_id)) * visual_tokens(config)
