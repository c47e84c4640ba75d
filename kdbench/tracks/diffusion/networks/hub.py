"""Pretrained teachers through diffusers: pixel models, EDM checkpoints, Stable Diffusion 1.5 and SDXL.

Whatever the scheduler of the checkpoint says decides the process: schedulers of EDM make it an ``Edm`` with its
preconditioning, all others with a table of noise a :class:`~kdbench.tracks.diffusion.networks.tabulated.Tabulated`.
Models of latents read embedded texts, which :meth:`Pretrained.prompts` makes. diffusers comes with
``pip install 'kdbench[diffusion]'``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import JobError, UsageError
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks import lora
from kdbench.tracks.diffusion.networks.base import Denoiser, EdmDenoiser
from kdbench.tracks.diffusion.networks.tabulated import PREDICTIONS, TabulatedDenoiser, table_of
from kdbench.tracks.diffusion.processes import Edm
from kdbench.tracks.diffusion.spec import Hub

CONFIG = "hub.json"
FAMILIES = {"UNet2DModel": "pixel", "UNet2DConditionModel": "text"}


class HubNet(nn.Module):
    """A U-Net of diffusers as a raw network. Feature maps: ``enc0``, ... and ``dec0``, ... after the blocks of a
    resolution (0 the finest; ``enc`` after its downsampling), ``mid`` the bottleneck."""

    def __init__(self, unet: nn.Module, shape: Sequence[int]) -> None:
        super().__init__()
        self.unet, self.shape = unet, tuple(shape)
        widths = list(unet.config.block_out_channels)  # type: ignore[union-attr]
        self.channels = {f"{part}{level}": width for part in ("enc", "dec") for level, width in enumerate(widths)}
        self.channels["mid"] = widths[-1]

    def _blocks(self) -> dict[str, Any]:
        """Blocks whose outputs are the feature maps."""
        unet: Any = self.unet
        found = {f"enc{level}": block for level, block in enumerate(unet.down_blocks)}
        found["mid"] = unet.mid_block
        return found | {f"dec{len(unet.up_blocks) - 1 - number}": block for number, block in enumerate(unet.up_blocks)}

    @contextmanager
    def _observed(self) -> Iterator[dict[str, Tensor]]:
        found: dict[str, Tensor] = {}
        handles = []
        for name, block in self._blocks().items():

            def keep(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                found[name] = output[0] if isinstance(output, tuple) else output

            handles.append(block.register_forward_hook(keep))
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def forward(
        self, x: Tensor, c: Tensor, cond: Condition, features: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """(B, *shape) to (B, *shape), float32 whatever the weights are; a learned variance is left out."""
        dtype = self.unet.dtype  # type: ignore[union-attr]
        parts = [x]
        beside = self.unet.config.in_channels - x.shape[1]  # type: ignore[union-attr]
        if beside:
            if cond.image is None or cond.image.shape[1] != beside:
                raise UsageError(f"the model reads an image of {beside} channels beside the state")
            parts.append(cond.image)
        entered, asked = torch.cat(parts, 1).to(dtype), self.asked(cond, dtype)
        if not features:
            return self.unet(entered, c, **asked).sample[:, : x.shape[1]].float()  # type: ignore[no-any-return]
        with self._observed() as maps:
            out = self.unet(entered, c, **asked).sample[:, : x.shape[1]].float()
        return out, {name: value.float() for name, value in maps.items()}

    def asked(self, cond: Condition, dtype: torch.dtype) -> dict[str, Any]:
        """What the U-Net is told of the condition. Raises ``UsageError`` where something is missing."""
        raise NotImplementedError


class PixelNet(HubNet):
    """``UNet2DModel``; classes are tokens from 1, for it has no null class."""

    def asked(self, cond: Condition, dtype: torch.dtype) -> dict[str, Any]:
        if self.unet.config.num_class_embeds is None:  # type: ignore[union-attr]
            return {}
        if cond.tokens is None or bool((cond.tokens == 0).any()):
            raise UsageError("the model was trained with classes alone: it has no null condition")
        return {"class_labels": cond.tokens[:, 0] - 1}


class TextNet(HubNet):
    """``UNet2DConditionModel``; that of SDXL also reads a summary of the text and sizes, here of uncropped images."""

    def __init__(self, unet: nn.Module, shape: Sequence[int], pixels: tuple[int, int]) -> None:
        """``pixels``: height and width of the images whose latents these are."""
        super().__init__(unet, shape)
        self.pixels = pixels

    def asked(self, cond: Condition, dtype: torch.dtype) -> dict[str, Any]:
        if cond.embedding is None:
            raise UsageError("the model reads embedded texts; Pretrained.prompts(...) makes such conditions")
        given: dict[str, Any] = {"encoder_hidden_states": cond.embedding.to(dtype)}
        if self.unet.config.addition_embed_type == "text_time":  # type: ignore[union-attr]
            if cond.pooled is None:
                raise UsageError("the model reads a summary of the text; Pretrained.prompts(...) makes such conditions")
            sizes = torch.tensor([[*self.pixels, 0, 0, *self.pixels]], dtype=dtype, device=cond.pooled.device)
            added = {"text_embeds": cond.pooled.to(dtype), "time_ids": sizes.expand(len(cond), -1)}
            given["added_cond_kwargs"] = added
        return given


class HubEdm(EdmDenoiser):
    """An EDM checkpoint; its raw network may give the negative (``v_prediction`` of diffusers)."""

    prediction: str = "epsilon"

    def output(self, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
        return super().output(x, -out if self.prediction == "v_prediction" else out, t)

    def save(self, folder: Path) -> None:
        """U-Net and scheduler as diffusers writes them."""
        _save(self, folder)

    @classmethod
    def load(cls, folder: Path) -> Denoiser:
        return _reopened(folder)


class HubTabulated(TabulatedDenoiser):
    """A checkpoint with a table of noise."""

    def save(self, folder: Path) -> None:
        """U-Net and scheduler as diffusers writes them."""
        _save(self, folder)

    @classmethod
    def load(cls, folder: Path) -> Denoiser:
        return _reopened(folder)


class Pretrained:
    """A pipeline of diffusers: its denoiser, and the way from images and texts to what that reads and back."""

    def __init__(self, denoiser: Denoiser, pipeline: Any) -> None:
        """``pipeline`` is None for pixel models."""
        self.denoiser, self.pipeline = denoiser, pipeline

    def to(self, device: torch.device | str) -> Pretrained:
        self.denoiser.to(device)
        if self.pipeline is not None:
            self.pipeline.to(device)
        return self

    @torch.no_grad()
    def prompts(self, texts: Sequence[str]) -> Condition:
        """Embedded texts as the pipeline embeds them, with its null: the empty text, or zeros where it takes those.

        Raises ``UsageError`` for models without text.
        """
        if self.pipeline is None:
            raise UsageError("the model reads no texts")
        device = next(self.denoiser.parameters()).device
        options = {"device": device, "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
        found = self.pipeline.encode_prompt(list(texts), **options)
        empty = found[1][:1]
        if len(found) == 2:
            return Condition(len(texts), embedding=found[0], empty=empty)
        return Condition(len(texts), embedding=found[0], empty=empty, pooled=found[2], empty_pooled=found[3][:1])

    @torch.no_grad()
    def encode(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to states of the denoiser: means of the latents, or draws of them."""
        if self.pipeline is None:
            return images
        vae = self.pipeline.vae
        latents = vae.encode(images.to(vae.dtype)).latent_dist
        drawn = latents.mode() if generator is None else latents.sample(generator)
        return ((drawn - _shift(vae)) * vae.config.scaling_factor).float()  # type: ignore[no-any-return]

    def decode(self, states: Tensor) -> Tensor:
        """States of the denoiser to images (B, 3, H, W), about in [-1, 1]. Gradients flow."""
        if self.pipeline is None:
            return states
        vae = self.pipeline.vae
        latents = states.to(vae.dtype) / vae.config.scaling_factor + _shift(vae)
        return vae.decode(latents).sample.float()  # type: ignore[no-any-return]

    def save(self, folder: Path) -> None:
        """As a pipeline of diffusers, with the weights that the denoiser has now."""
        if self.pipeline is None:
            _save(self.denoiser, folder)
        else:
            self.pipeline.save_pretrained(folder)


def _shift(vae: Any) -> float:
    return getattr(vae.config, "shift_factor", None) or 0.0


def load(teacher: Hub, device: torch.device | str = "cpu") -> Denoiser:
    """The denoiser of a checkpoint, in evaluation mode. Raises as :func:`open_pretrained`."""
    return open_pretrained(teacher).to(device).denoiser


def open_pretrained(teacher: Hub) -> Pretrained:
    """A folder that diffusers wrote, or a name on the hub: ``unet`` and ``scheduler``, and all else of a pipeline.

    Raises ``JobError`` where diffusers is missing or cannot load it, and for models that are none of those above.
    """
    diffusers = _diffusers()
    path = str(Path(teacher.path).expanduser()) if teacher.path.startswith(("/", ".", "~")) else teacher.path
    source: dict[str, Any] = {"revision": teacher.revision}
    dtype = getattr(torch, teacher.dtype)
    try:
        kind = diffusers.UNet2DModel.load_config(path, subfolder="unet", **source).get("_class_name")
        family = FAMILIES.get(kind)
        if family is None:
            known = ", ".join(FAMILIES)
            raise JobError(f"{teacher.path!r} has a network of the class {kind}; supported are {known}")
        if family == "pixel":
            unet = diffusers.UNet2DModel.from_pretrained(path, subfolder="unet", dtype=dtype, **source)
            return Pretrained(_denoiser(unet, _scheduler(path, source), None), None)
        pipeline = diffusers.DiffusionPipeline.from_pretrained(path, dtype=dtype, **_no_checker(path, source))
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise JobError(f"diffusers cannot load {teacher.path!r}: {error}") from error
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    return Pretrained(_denoiser(pipeline.unet, pipeline.scheduler, (side, side)), pipeline)


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise JobError(f"pretrained teachers need diffusers: pip install 'kdbench[diffusion]' ({error})") from error
    return diffusers


def _no_checker(path: str, source: dict[str, Any]) -> dict[str, Any]:
    """Options that leave out the classifier of unsafe images: no sample is shown to anybody."""
    config = _diffusers().DiffusionPipeline.load_config(path, **source)
    leave = {name: None for name in ("safety_checker", "feature_extractor") if name in config}
    return {**source, **leave, **({"requires_safety_checker": False} if "safety_checker" in config else {})}


def _scheduler(path: str, source: dict[str, Any]) -> Any:
    diffusers = _diffusers()
    config = diffusers.DDPMScheduler.load_config(path, subfolder="scheduler", **source)
    found = getattr(diffusers, str(config.get("_class_name")), None)
    if found is None:
        raise JobError(f"{path!r} has a scheduler of the class {config.get('_class_name')}, which diffusers has not")
    return found.from_config(config)


def _denoiser(unet: Any, scheduler: Any, pixels: tuple[int, int] | None) -> Denoiser:
    """Network and scheduler as one denoiser, of latents where ``pixels`` of the images are given."""
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    shape = (min(unet.config.in_channels, unet.config.out_channels), height, width)
    net = PixelNet(unet, shape) if pixels is None else TextNet(unet, shape, pixels)
    config, name = scheduler.config, type(scheduler).__name__
    prediction = config.get("prediction_type", "epsilon")
    model: HubEdm | HubTabulated
    if name.startswith("EDM"):
        process = Edm(sigma_min=config.sigma_min, sigma_max=config.sigma_max, data_std=config.sigma_data)
        model = HubEdm(net, process, shape)
    elif hasattr(scheduler, "alphas_cumprod") and prediction in PREDICTIONS:
        model = HubTabulated(net, table_of(scheduler), shape)
    else:
        raise JobError(
            f"the scheduler {name}, predicting {prediction!r}, has neither EDM's process nor a table of noise"
        )
    model.prediction, model.scheduler = prediction, scheduler  # type: ignore[assignment]
    return model.eval()


def _save(model: Any, folder: Path) -> None:
    """Network, scheduler, and adapters apart, so that diffusers can read the folder, too."""
    unet = model.net.unet
    with lora.detached(unet):
        unet.save_pretrained(folder / "unet")
    model.scheduler.save_pretrained(folder / "scheduler")
    adapters = lora.describe(unet)
    for name in adapters:
        lora.save(unet, name, folder / f"{name}.adapter.safetensors")
    facts = {
        "pixels": getattr(model.net, "pixels", None),
        "dtype": str(unet.dtype).removeprefix("torch."),
        "used": lora.used(unet),
        "adapters": list(adapters),
    }
    (folder / CONFIG).write_text(json.dumps(facts) + "\n")


def _reopened(folder: Path) -> Denoiser:
    diffusers = _diffusers()
    facts = json.loads((folder / CONFIG).read_text())
    pixels = None if facts["pixels"] is None else (int(facts["pixels"][0]), int(facts["pixels"][1]))
    kind = diffusers.UNet2DModel if pixels is None else diffusers.UNet2DConditionModel
    unet = kind.from_pretrained(folder / "unet", dtype=getattr(torch, facts["dtype"]))
    for name in facts["adapters"]:
        lora.load(unet, name, folder / f"{name}.adapter.safetensors")
    lora.set_used(unet, facts["used"])
    return _denoiser(unet, _scheduler(str(folder), {}), pixels)
