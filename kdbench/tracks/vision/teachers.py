"""Teachers: trained once by the track's recipe and kept in the cache, and their outputs on fixed data, computed once.

A trained teacher *is* its weights rounded to half precision: they are rounded after training and stored so, hence
the network that was just trained and the one that is loaded later are the same to the last bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.budget import Budget
from kdbench.cache import Cache
from kdbench.errors import OverBudget
from kdbench.spec import Recipe
from kdbench.task import seed_of
from kdbench.tracks.vision import data, metrics, streams
from kdbench.tracks.vision.batches import Batch, Batches, Split, normalised
from kdbench.tracks.vision.models import Classifier, build, family
from kdbench.tracks.vision.spec import PRETRAINED, TEACHER_RECIPES, TeacherSpec, VisionSpec
from kdbench.training import loop
from kdbench.training.mixing import mix

if TYPE_CHECKING:
    from kdbench.tracks.vision.task import VisionTask

EVAL_BATCH = 500
TRANSFER_BATCH = 100
"""Images at a time for the features of a pretrained network."""
PROBE = {"strength": 1e-2}
"""Of the last layer of a pretrained teacher: see :func:`kdbench.training.probes.fit_probe`."""


def to_split(
    arrays: data.Arrays, *, device: torch.device, offset: int = 0, files: streams.Files | None = None
) -> Split:
    """A split of bytes as normalised float32 images on a device; identities count from ``offset``.

    With ``files`` the images are decoded from these when they are asked for.
    """
    if files is None:
        x = normalised(torch.from_numpy(arrays.x).to(device))
    else:
        x = streams.Stream(files, arrays.x, device)
    return Split(
        x,
        torch.from_numpy(arrays.y).to(device),
        torch.arange(offset, offset + len(arrays), device=device),
        {name: torch.from_numpy(values).to(device) for name, values in arrays.meta.items()},
    )


@torch.no_grad()
def logits_of(model: nn.Module, x: Tensor, size: int = EVAL_BATCH) -> Tensor:
    """Logits (N, C) float32 of a network in eval mode; its mode is as before afterwards."""
    was_training = model.training
    model.eval()
    try:
        return torch.cat([model(part).float() for part in x.split(size)])
    finally:
        model.train(was_training)


@torch.no_grad()
def penult_of(model: Classifier, x: Tensor, size: int = EVAL_BATCH) -> Tensor:
    """Inputs (N, D) float32 of a network's last layer, in eval mode; its mode is as before afterwards."""
    was_training = model.training
    model.eval()
    try:
        return torch.cat([model.taps(part).penult.float() for part in x.split(size)])
    finally:
        model.train(was_training)


def weights_digest(model: nn.Module) -> str:
    """16 hexadecimal digits of the SHA-256 of all parameters and buffers with their names, types and shapes."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def round_half(model: nn.Module) -> nn.Module:
    """Round every floating-point parameter and buffer to the nearest half-precision number, in place."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(tensor.half().float())
    return model


# --- training ---------------------------------------------------------------------------------------------------------


@torch.enable_grad()  # a teacher may be asked for, and so trained, where gradients are off
def train(spec: TeacherSpec, dataset: data.Dataset, size: int, seed: int, device: torch.device) -> Classifier:
    """A new teacher, trained by cross-entropy on the data set's ``train`` split with random rolls by up to 2 pixels."""
    if family(spec.arch) in PRETRAINED:
        return transfer(spec, dataset, size, seed, device)
    split = to_split(dataset.arrays("train"), device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed_of("teacher", seed, "init"))
        model = build(spec.arch, dataset.classes, size).to(device)
    recipe = spec.recipe or TEACHER_RECIPES[family(spec.arch)]
    generator = torch.Generator().manual_seed(seed_of("teacher", seed, "data"))

    rng = np.random.default_rng(seed_of("teacher", seed, "mixup"))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        x, y = batch.x, batch.y
        if spec.mixup:
            mixed = mix(x, y, dataset.classes, rng, alpha=spec.mixup)
            x, y = mixed.x, mixed.target
        return F.cross_entropy(model(x).float(), y, label_smoothing=spec.smoothing)

    # The loop charges a task; a teacher is charged to nobody.
    nobody = SimpleNamespace(
        device=device,
        budget=Budget({}),
        checkpoints=None,
        log=lambda *args, **values: None,
        progress=lambda *args: None,
    )
    loop.fit(
        nobody,
        model,
        loss,
        loader=Batches(split, recipe.batch_size, generator, augment=True, how=spec.augment or "roll"),
        recipe=recipe,
        steps=spec.steps,
        spend="steps",
        modules=(),
        ema=None,
        on_step=None,
        state=(),
        tag="",
    )
    return round_half(model).eval()


def transfer(spec: TeacherSpec, dataset: data.Dataset, size: int, seed: int, device: torch.device) -> Classifier:
    """A teacher that is pretrained on ImageNet, with a last layer for the data set's ``train`` split.

    That layer is a multinomial logistic regression on the features of the stored images. Its temperature is the best
    one for logits of images that it was not fitted on: its soft labels are honest although it fits its own images.
    """
    from kdbench.training.probes import fit_probe

    split = to_split(dataset.arrays("train"), device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        model = build(spec.arch, dataset.classes, size).to(device)
    model.load_imagenet()
    round_half(model)  # the last layer is fitted to the network as it will be stored
    features = penult_of(model, split.x, TRANSFER_BATCH).cpu().numpy()
    probe = fit_probe(features, split.y.cpu().numpy(), dataset.classes, strength=PROBE["strength"], seed=seed)
    slope = probe.weight / probe.scale[:, None]  # of the features as they are
    with torch.no_grad():
        model.head().weight.copy_(torch.from_numpy(slope.T / probe.temperature))
        model.head().bias.copy_(torch.from_numpy((probe.bias - probe.mean @ slope) / probe.temperature))
    return round_half(model).eval()


def pseudo_labels(split: Split, ask: Callable[[Batch], Tensor]) -> Tensor:
    """(N,) labels of a split, with the prediction of ``ask``, which gives logits (B, C), where there is none."""
    labels = split.y.clone()
    hidden = (labels < 0).nonzero().flatten()
    for rows in hidden.split(EVAL_BATCH) if len(hidden) else ():
        labels[rows] = ask(split.batch(rows)).argmax(1)
    return labels


def teacher_recipe(spec: VisionSpec) -> Recipe:
    """How the task's teacher was trained; for one of transformers, how the task trains its students."""
    assert spec.teacher is not None
    return spec.teacher.recipe or TEACHER_RECIPES.get(family(spec.teacher.arch), spec.recipe)


def train_on(
    task: VisionTask,
    model: Classifier,
    loss: Callable[[nn.Module, Batch], Any],
    split: Split,
    *,
    steps: int,
    rate: float,
    tag: str,
    **options: Any,
) -> None:
    """Train a method's own copy of the task's teacher further on some images, in place, charged as ``aux_steps``.

    By the recipe of its first training, random rolls included, from ``rate`` times its peak rate along a cosine.
    ``tag`` also names the random stream; ``options`` are those of ``task.fit``.
    """
    recipe = teacher_recipe(task.spec)
    task.fit(
        model,
        loss,
        loader=task.train_loader(split, recipe.batch_size, augment=True, purpose=tag),
        steps=steps,
        spend="aux_steps",
        tag=tag,
        **recipe.model_dump(exclude={"batch_size", "schedule", "warmup", "lr"}),
        lr=rate * recipe.lr,
        schedule="cosine",
        **options,
    )


def _scores(model: Classifier, split: Split) -> dict[str, float]:
    logits = logits_of(model, split.x)
    return {"top1": metrics.accuracy(logits, split.y), "nll": metrics.nll(logits, split.y)}


def make(spec: VisionSpec, name: str, cache: Cache, folder: Path, device: torch.device) -> None:
    """Train the teacher ``name`` of a task and write ``model.safetensors`` (half precision) and ``teacher.json``."""
    teacher = spec.all_teachers()[name]
    pretrained = family(teacher.arch) in PRETRAINED
    own = data.teacher_data(spec.data, cache, teacher.target)
    model = train(teacher, own, spec.data.size, spec.teacher_recipe(name)["seed"], device)
    scores = {"train": _scores(model, to_split(own.arrays("train"), device=device))}
    if teacher.target == "label":
        seen = data.load(spec.data, cache)
        scores |= {part: _scores(model, to_split(seen.arrays(part), device=device)) for part in ("val", "test")}
    halves = {key: t.half() if t.is_floating_point() else t for key, t in model.cpu().state_dict().items()}
    save_file({key: tensor.contiguous() for key, tensor in halves.items()}, folder / "model.safetensors")
    about = {
        "recipe": spec.teacher_recipe(name),
        "training": PROBE if pretrained else TEACHER_RECIPES[family(teacher.arch)].model_dump(mode="json"),
        "classes": own.classes,
        "size": spec.data.size,
        "data": own.digest,
        "weights": weights_digest(model),
        "scores": scores,
    }
    (folder / "teacher.json").write_text(json.dumps(about, indent=1) + "\n")


def load(spec: VisionSpec, name: str, cache: Cache, device: torch.device, classes: int) -> Classifier:
    """The teacher ``name`` on the CPU: loaded from its folder of transformers, from the cache, or trained now."""
    teacher = spec.all_teachers()[name]
    if family(teacher.arch) == "hf":
        with torch.random.fork_rng(devices=[]):
            return build(teacher.arch, classes, spec.data.size, pretrained=True).eval()
    folder = cache.get("teacher", spec.teacher_recipe(name), lambda made: make(spec, name, cache, made, device))
    about = json.loads((folder / "teacher.json").read_text())
    with torch.random.fork_rng(devices=[]):  # whether a teacher is loaded early or late changes no random number
        model = build(teacher.arch, about["classes"], about["size"])
    model.load_state_dict(
        {k: t.float() if t.is_floating_point() else t for k, t in load_file(folder / "model.safetensors").items()}
    )
    return model.eval()


# --- outputs ----------------------------------------------------------------------------------------------------------


def outputs_key(
    weights: str, content: str, split: str, *, transform: str = "none", dtype: str = "float32"
) -> dict[str, str]:
    """Everything that decides stored logits: digests of the weights and of the split's content among them."""
    return {
        "track": "vision",
        "weights": weights,
        "data": content,
        "split": split,
        "transform": transform,
        "dtype": dtype,
    }


def outputs(model: Classifier, weights: str, content: str, split: str, x: Callable[[], Tensor], cache: Cache) -> Tensor:
    """Logits (N, C) float32 of a split on the CPU, from the cache or computed now. ``x()`` gives the images."""

    def write(folder: Path) -> None:
        save_file({"logits": logits_of(model, x()).cpu().contiguous()}, folder / "logits.safetensors")

    folder = cache.get("outputs", outputs_key(weights, content, split), write)
    return load_file(folder / "logits.safetensors")["logits"]


class CountingTeacher:
    """Answers of a teacher about a pool, of which each new image costs one query.

    An image that was asked for before is free. Raises ``OverBudget`` past the limit ``teacher_queries`` of the
    budget, before anything is answered.
    """

    def __init__(self, logits: Tensor, budget: Budget) -> None:
        """``logits`` (N, C): what the teacher says about every image of the pool."""
        self._logits = logits
        self._budget = budget
        self.known = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        """(N,) images whose answer was paid for."""

    def __call__(self, rows: Tensor) -> Tensor:
        """Logits (n, C) for positions (n,) of the pool. Raises ``IndexError`` for positions outside of it."""
        rows = torch.as_tensor(rows, dtype=torch.int64, device=self._logits.device).flatten()
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self._logits)):
            raise IndexError(f"the pool has the positions 0 to {len(self._logits) - 1}")
        new = torch.unique(rows[~self.known[rows]])
        if self._budget.remaining("teacher_queries") < len(new):
            raise OverBudget(
                f"{len(new)} new queries asked for, but {self._budget.remaining('teacher_queries'):g} of "
                f"{self._budget.limits['teacher_queries']:g} are left"
            )
        self._budget.spend("teacher_queries", len(new))
        self.known[new] = True
        return self._logits[rows]
