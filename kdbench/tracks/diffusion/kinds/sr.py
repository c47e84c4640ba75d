"""Super-resolution of photographs: what an image of low resolution has lost is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kdbench.errors import UsageError
from kdbench.task import Scores, seed_of
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.data import photos
from kdbench.tracks.diffusion.data.degrade import lowered, magnified
from kdbench.tracks.diffusion.data.specs import SrData
from kdbench.tracks.diffusion.evaluate import grids
from kdbench.tracks.diffusion.evaluate.images import high_error, patch_frechet, psnr, ssim
from kdbench.tracks.diffusion.kinds.base import Kind, Split
from kdbench.tracks.diffusion.samplers.base import Sampled, Sampler

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask


class SuperResolution(Kind):
    """Grey patches; the condition is the patch at a low resolution, magnified again (bicubic)."""

    image_channels = 1
    around = True

    @property
    def data(self) -> SrData:
        """The task's data."""
        assert isinstance(self.spec.data, SrData)
        return self.spec.data

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        return (1, self.data.size, self.data.size)

    @cached_property
    def data_std(self) -> float:  # type: ignore[override]
        """Of what training patches lack at the low resolution, to two decimals."""
        split = self.split("train")
        assert split.cond.image is not None
        return round(float((split.x - split.cond.image).double().std()), 2)

    # --- data -----------------------------------------------------------------------------------------------------

    def make(self, name: str) -> Split:
        data = self.data
        stride = data.stride if name == "train" else data.size
        found = photos.patches(photos.photographs(), name, data.size, stride)
        found = found[found.reshape(len(found), -1).std(1) >= data.detail]
        wanted = getattr(data, name)
        if wanted is not None:
            if wanted > len(found):
                raise UsageError(f"data.{name} asks for {wanted} patches, but there are {len(found)}")
            found = found[np.linspace(0, len(found) - 1, wanted).round().astype(int)]
        x = torch.from_numpy(found.astype(np.float32))[:, None] / 127.5 - 1
        generator = torch.Generator().manual_seed(seed_of("diffusion/sr", data.seed, name))
        return Split(x, Condition(len(x), image=self.degraded(x, data.factor, generator)))

    def degraded(self, x: Tensor, factor: int, generator: torch.Generator) -> Tensor:
        """(B, 1, P, P) what is left of patches at 1/``factor`` of their sides, magnified; noise from ``generator``."""
        data = self.data
        low = lowered(x, factor, generator, blur_std=data.blur, noise_std=data.noise, step=data.step)
        return magnified(low, factor)

    def batches(self, which: str = "default") -> Callable[[int, torch.Generator], tuple[Tensor, Condition]]:
        """As for other kinds; the noise of the degradation is drawn anew for each batch."""
        x = self.split("train").x

        def batch(size: int, generator: torch.Generator) -> tuple[Tensor, Condition]:
            sharp = x[torch.randint(len(x), (size,), generator=generator)]
            return sharp, Condition(size, image=self.degraded(sharp, self.data.factor, generator))

        return batch

    # --- measures -----------------------------------------------------------------------------------------------------

    def compare(
        self, task: DiffusionTask, sampler: Sampler, split: str
    ) -> tuple[dict[str, float], dict[str, Tensor], Sampled]:
        """Metrics of one sample for each patch of a split, what they are means of, (N,) each, and the samples."""
        whole = self.split(split)
        usual = task.spec.evaluation.samples if split == "test" else task.spec.evaluation.val_samples
        sampled = self.samples(sampler, min(usual, len(whole)), split, task.device)
        x, wanted = sampled.x.cpu().clamp(-1, 1), whole.x[: len(sampled.x)]
        plain = whole.cond.image[: len(x)]
        values = {
            "psnr": psnr(x, wanted),
            "psnr_gain": psnr(x, wanted) - psnr(plain, wanted),
            "ssim": ssim(x, wanted),
            "hf_error": high_error(x, wanted),
        }
        metrics = {name: float(value.mean()) for name, value in values.items()}
        return metrics | {"fd_patch": patch_frechet(x, wanted)}, values, sampled

    def validate(self, task: DiffusionTask, sampler: Sampler) -> dict[str, float]:
        return self.compare(task, sampler, "val")[0]

    def measure(self, task: DiffusionTask, sampler: Sampler) -> Scores:
        """fd_patch, psnr (dB), psnr_gain over bicubic interpolation (dB), ssim, hf_error (nepers), nfe."""
        metrics, values, sampled = self.compare(task, sampler, "test")
        metrics["nfe"] = sampled.nfe
        grids.keep(task, self.pictures(task, sampled, self.split("test").cond[: len(sampled.x)]))
        return Scores(metrics, {name: value.numpy() for name, value in values.items()})

    def pictures(self, task: DiffusionTask, sampled: Sampled, cond: Condition) -> Mapping[str, Any]:
        """What was given and what was made of it for some patches, and the way from noise to them."""
        assert cond.image is not None
        shown = torch.stack([cond.image.cpu(), sampled.x.cpu()], 1)[:32].flatten(0, 1)
        return {
            "samples.png": grids.tiles(shown, 8, scale=2, caption="Low resolution, magnified, and result beside it"),
            "trajectory.png": grids.way(
                sampled.trajectory, scale=2, caption="From noise to results, one step a column"
            ),
        }
