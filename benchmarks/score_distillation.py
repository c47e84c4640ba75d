"""Time and memory of a step of score distillation on a U-Net of real size.

DMD2 through kdbench's own runner on the task ``diffusion/hf-pixels``: generator, critic and teacher are U-Nets of
diffusers in the size of the DDPM of CIFAR-10 (35.7 M parameters each), with random weights, on random pictures. Neither
changes what a step costs. See ``benchmarks/README.md``.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import measure
import typer
import yaml
from measure import Failed, Workload
from rich.console import Console
from rich.table import Table
from scheduler import MIB, machine

from kdbench.store import spool

SIZES: dict[str, dict[str, Any]] = {
    # Ho et al., NeurIPS 2020, appendix B: 35.7 M parameters
    "cifar10": {
        "sample_size": 32,
        "block_out_channels": (128, 256, 256, 256),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "norm_num_groups": 32,
    },
    "tiny": {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
}
"""Networks by name; the tiny one is for a look at whether everything runs."""
PICTURES = 512


@dataclass(frozen=True)
class Row:
    """One batch size and precision."""

    batch: int
    precision: str
    step_seconds: float
    """Of an update, the generator's and the critic's in their usual proportion, without the first ones of a job."""
    pictures_per_second: float
    """That updates saw."""
    gpu_bytes: float
    """Peak on the device; 0 on a CPU."""
    cpu_bytes: float
    """Peak resident memory of the job's process."""
    parameters: int
    """Of the sampler."""


def materials(folder: Path, size: str) -> dict[str, Any]:
    """Teacher, pictures and a network for features, written to a folder; returns what a task overrides."""
    import diffusers
    import numpy as np
    import torch
    import transformers
    from PIL import Image

    torch.manual_seed(0)
    side = SIZES[size]["sample_size"]
    diffusers.UNet2DModel(in_channels=3, out_channels=3, **SIZES[size]).save_pretrained(folder / "teacher" / "unet")
    noise = diffusers.DDIMScheduler(1000, beta_start=1e-4, beta_end=0.02, clip_sample=False)
    noise.save_pretrained(folder / "teacher" / "scheduler")
    pictures, rng = folder / "data" / "train", np.random.default_rng(0)
    pictures.mkdir(parents=True)
    with (pictures / "metadata.jsonl").open("w") as file:
        for row in range(PICTURES):
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(pictures / f"{row}.png")
            file.write(json.dumps({"file_name": f"{row}.png"}) + "\n")
    features = transformers.Dinov2Config(
        image_size=side, patch_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.Dinov2Model(features).save_pretrained(folder / "features")
    how = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "image_processor_type": "BitImageProcessor"}
    (folder / "features" / "preprocessor_config.json").write_text(json.dumps(how))
    data = {"path": str(folder / "data"), "image": "image", "size": side, "features": str(folder / "features")}
    return {
        "teacher": {"path": str(folder / "teacher")},
        "data": {**data, "parts": {"train": "train"}, "train": PICTURES // 2, "val": 16, "test": PICTURES // 4},
        "evaluation": {"samples": 16, "val_samples": 16, "teacher_steps": 2, "grid": 2},
    }


def measured(
    folder: Path, override: dict[str, Any], batch: int, precision: str, steps: tuple[int, int], gpu: bool
) -> Row:
    """Two jobs of different length; what the longer one takes more is the steps'. Raises ``Failed`` where one fails."""
    costs = []
    for count in steps:
        task = {**override, "recipe": {"batch_size": batch, "precision": precision}, "limits": {"steps": count}}
        suite = {
            "name": f"steps-{count}",
            "scale": "paper",
            "tasks": [{"task": "diffusion/hf-pixels", "override": task}],
            "methods": ["dmd2"],
            "seeds": 1,
            "resources": {"gpus": int(gpu)},
            "tracking": False,
        }
        place = folder / f"{batch}-{precision}-{count}"
        place.mkdir()
        path = place / "suite.yaml"
        path.write_text(yaml.safe_dump(suite))
        measure.run_suite(Workload(path, 1), place / "results")
        costs += [outcome.cost for outcome in spool.iter_outcomes(place / "results")]
    short, long = costs
    seconds = (long["train_seconds"] - short["train_seconds"]) / (steps[1] - steps[0])
    return Row(
        batch,
        precision,
        seconds,
        batch / seconds,
        float(long.get("peak_gpu_bytes") or 0),
        float(long.get("peak_rss_bytes") or 0),
        int(long["parameters"]),
    )


def table(rows: list[Row]) -> Table:
    """The rows for people."""
    shown = Table(box=None, pad_edge=False)
    for name in ("batch", "precision", "s/step", "pictures/s", "GPU MiB", "CPU MiB", "parameters"):
        shown.add_column(name, justify="left" if name == "precision" else "right")
    for row in rows:
        shown.add_row(
            *(str(row.batch), row.precision, f"{row.step_seconds:.3g}", f"{row.pictures_per_second:.1f}"),
            *(f"{row.gpu_bytes / MIB:.0f}", f"{row.cpu_bytes / MIB:.0f}", f"{row.parameters:,}"),
        )
    return shown


def main(
    size: Annotated[str, typer.Option(help="Network: " + ", ".join(SIZES) + ".")] = "cifar10",
    batch: Annotated[list[int] | None, typer.Option(min=1, help="Batch sizes.  [default: 64 256]")] = None,
    precision: Annotated[list[str] | None, typer.Option(help="float32, bfloat16; both by default.")] = None,
    steps: Annotated[tuple[int, int], typer.Option(min=1, help="Of the short and the long job.")] = (30, 130),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure steps per second and peak memory of DMD2."""
    if size not in SIZES:
        raise typer.BadParameter(f"there is no network {size!r}; there are {', '.join(SIZES)}", param_hint="--size")
    if device not in ("cpu", "cuda"):
        raise typer.BadParameter(f"{device!r} is neither cpu nor cuda", param_hint="--device")
    if steps[0] >= steps[1]:
        raise typer.BadParameter("the second number must be larger than the first", param_hint="--steps")
    gpu, name = device == "cuda", machine()
    if gpu:
        from kdbench.schedule import gpus

        found = gpus.gpus() if gpus.gpu_count() else ()
        if not found:
            print("error: there is no GPU here; --device cpu measures without one", file=sys.stderr)
            raise typer.Exit(2)
        name = f"{found[0].name}, {found[0].memory / 2**30:.0f} GiB"
    rows = []
    with tempfile.TemporaryDirectory(prefix="kdbench-scores-") as home:
        folder = Path(home)
        override = materials(folder, size)
        try:
            for kind in precision or ("float32", "bfloat16"):
                for count in batch or (64, 256):
                    rows.append(measured(folder, override, count, kind, steps, gpu))
                    print(f"batch {count}, {kind}: {rows[-1].step_seconds:.3g} s a step", file=sys.stderr)
        except Failed as failed:
            print(f"error: {failed}", file=sys.stderr)
            raise typer.Exit(2) from failed
    if as_json:
        what = {"machine": name, "size": size, "steps": list(steps), "rows": [asdict(row) for row in rows]}
        print(json.dumps(what, indent=1))
        return
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(f"{name}; DMD2, three networks of the size {size!r}, {steps[1] - steps[0]} steps", highlight=False)
    console.print(table(rows), highlight=False)


if __name__ == "__main__":
    typer.run(main)
