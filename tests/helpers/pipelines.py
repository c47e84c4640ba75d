"""Small pipelines of diffusers, made from configurations and saved in folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdbench.tracks.diffusion.spec import Hub

diffusers = pytest.importorskip("diffusers")
N = 20
"""Steps of the tables of noise."""


def hub(folder: Path, **rest) -> Hub:
    return Hub(path=str(folder), **rest)


def table(prediction="epsilon", **rest):
    return diffusers.DDIMScheduler(
        N, beta_start=0.01, beta_end=0.3, clip_sample=False, prediction_type=prediction, **rest
    )


def pixel_unet(**rest):
    torch.manual_seed(0)
    size = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "norm_num_groups": 4}
    return diffusers.UNet2DModel(
        **{**size, **rest},
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )


def text_parts(tmp: Path, second: bool) -> dict:
    """Encoders of texts, their tokenizers, a coder of latents at half the resolution and a U-Net over these."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    words = ["<|startoftext|>", "<|endoftext|>"]
    words += [f"{letter}{end}" for letter in "abcdegkorsty" for end in ("", "</w>")]
    vocabulary = {word: number for number, word in enumerate(words)}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPTextConfig(
        vocab_size=len(words), max_position_embeddings=12, projection_dim=16, eos_token_id=1, bos_token_id=0, **sizes
    )
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12)
    extra = {}
    if second:
        extra = {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 16,
        }
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": CLIPTextModel(config).eval(),
        "vae": diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            sample_size=16,
            scaling_factor=0.3,
        ).eval(),
        "unet": diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=32 if second else 16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            **extra,
        ).eval(),
        "scheduler": table(steps_offset=1),
    }
    if second:
        parts |= {"text_encoder_2": CLIPTextModelWithProjection(config).eval(), "tokenizer_2": tokenizer}
    return parts


def saved(folder: Path, unet, scheduler) -> Path:
    unet.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    return folder


def pipelines(root: Path) -> dict[str, Path]:
    """Saved pipelines: ``sd`` and ``sdxl``."""
    options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    diffusers.StableDiffusionPipeline(**text_parts(root, False), **options).save_pretrained(root / "sd")
    diffusers.StableDiffusionXLPipeline(**text_parts(root, True), add_watermarker=False).save_pretrained(root / "sdxl")
    return {name: root / name for name in ("sd", "sdxl")}
