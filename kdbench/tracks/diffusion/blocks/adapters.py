"""Adapters that let a frozen denoiser do in one evaluation what guidance needs two for (Jensen and Sadat, TMLR 2025).

At each site (the self-attention of every block; whole blocks, where a network has no attention) a small network adds to
what the site gives. It reads embeddings of the guidance scale w, of the noise level and of the tokens:

    cross: W_o Attention(W_q h, W_k e, W_v e), with h what the site reads and e the embeddings, each a token;
    additive: a perceptron of the sum of the embeddings, the same at every place.

The last layer of each is zero at first, so that the network as a whole is the base, bit for bit, until it is trained.
The base itself never changes: the adapters are attached for the length of a call, and can be put onto another network
of the same architecture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.errors import ArtifactError, UsageError
from kdbench.task import count_parameters
from kdbench.tracks.diffusion.blocks.denoising import train
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.networks.base import Denoiser, Features, NetDenoiser
from kdbench.tracks.diffusion.networks.build import load_denoiser, save_denoiser
from kdbench.tracks.diffusion.networks.conditioning import Fourier
from kdbench.tracks.diffusion.networks.dit import DitBlock
from kdbench.tracks.diffusion.networks.mlp import FilmBlock
from kdbench.tracks.diffusion.networks.tokens import Slots, tokens_of
from kdbench.tracks.diffusion.networks.unet import MapAttention, UNetBlock
from kdbench.tracks.diffusion.processes import Time
from kdbench.tracks.diffusion.spec import Training

if TYPE_CHECKING:
    from kdbench.tracks.diffusion.task import DiffusionTask

Arch = Literal["cross", "additive"]
UNIT = 4.0
"""Guidance scales are divided by this before they are embedded, so that they are about 1."""


def sites(net: nn.Module) -> dict[str, tuple[int, int]]:
    """Where adapters go in a raw network, by name, with the widths of what is read and given there.

    The self-attention of the blocks (``attn1`` in models of diffusers); whole blocks that keep the resolution, where
    there is none. Raises ``UsageError`` for other networks.
    """
    found: dict[str, tuple[int, int]] = {}
    for name, module in net.named_modules():
        if name.endswith(".attn1") and hasattr(module, "to_out"):
            width = module.to_out[0].out_features  # type: ignore[index, union-attr]
            found[name] = (width, width)
        if isinstance(module, DitBlock | MapAttention):
            width = module.attention.proj.out_features
            found[f"{name}.attention"] = (width, width)
    if not found:
        for name, module in net.named_modules():
            if isinstance(module, FilmBlock):
                found[name] = (module.up.in_features, module.down.out_features)
            if isinstance(module, UNetBlock) and module.resample is None:
                found[name] = (module.conv_in.in_channels, module.conv_out.out_channels)
    if not found:
        raise UsageError(f"a {type(net).__name__} has no blocks that adapters are known for")
    return found


class Embedded(nn.Module):
    """Guidance scale, conditioning number, tokens and text as embeddings (B, 2 + slots + words, width)."""

    def __init__(self, width: int, vocabulary: Sequence[int], text: int | None = None) -> None:
        """``text``: width of an embedded text in the condition; None where there is none."""
        super().__init__()
        self.fourier = Fourier(width)
        self.numbers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.LayerNorm(width))
            for _ in range(2)
        )
        self.slots = Slots(vocabulary, width) if vocabulary else None
        self.text = nn.Linear(text, width) if text is not None else None
        self.kinds = nn.Parameter(torch.randn(2 + len(vocabulary), width) * 0.02)

    def forward(self, w: Tensor, c: Tensor, cond: Condition) -> Tensor:
        """``w`` and ``c`` (B,)."""
        parts = [
            layers(self.fourier(value))[:, None] for layers, value in zip(self.numbers, (w / UNIT, c), strict=True)
        ]
        if self.slots is not None:
            parts.append(self.slots(tokens_of(cond, len(self.slots.tables), w.device)))
        parts = [torch.cat(parts, 1) + self.kinds]
        if self.text is not None and cond.embedding is not None:
            parts.append(self.text(cond.embedding.float()))
        return torch.cat(parts, 1)


class Cross(nn.Module):
    """Attention of a site's input to the embeddings."""

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(inputs, hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.value, self.out = nn.Linear(hidden, hidden, bias=False), nn.Linear(hidden, outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        """``h`` (B, N, inputs), ``embedded`` (B, L, D); (B, N, outputs)."""
        mixed = F.scaled_dot_product_attention(self.query(h), self.key(embedded), self.value(embedded))
        out: Tensor = self.out(mixed)
        return out


class Additive(nn.Module):
    """A perceptron of the sum of the embeddings."""

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.LayerNorm(hidden))
        self.out = nn.Linear(hidden, outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        """As of :class:`Cross`; (B, 1, outputs)."""
        out: Tensor = self.out(self.layers(embedded.sum(1)))[:, None]
        return out


def as_tokens(h: Tensor) -> Tensor:
    """(B, W), (B, N, W) or (B, W, rows, columns) as (B, N, W)."""
    if h.ndim == 4:
        return h.flatten(2).transpose(1, 2)
    return h[:, None] if h.ndim == 2 else h


def shaped(added: Tensor, like: Tensor) -> Tensor:
    """(B, N, W), or (B, 1, W) for every place, in a shape that adds to ``like``, of which there is (B, N, W) tokens."""
    if like.ndim == 4:
        size = like.shape[2:] if added.shape[1] == like[0, 0].numel() else (1, 1)
        return added.transpose(1, 2).unflatten(2, size)
    return added[:, 0] if like.ndim == 2 else added


class Adapted(Denoiser):
    """A frozen denoiser with adapters that read a guidance scale."""

    def __init__(
        self,
        base: NetDenoiser,
        vocabulary: Sequence[int],
        hidden: int = 32,
        arch: Arch = "cross",
        scale: float = 1.0,
        text: int | None = None,
    ) -> None:
        """``vocabulary``: tokens of each slot; ``text``: width of an embedded text, where conditions have one.

        Weights come from the global generator: ``with task.seeded(...)``.

        Raises ``UsageError`` for a base whose blocks are not known.
        """
        super().__init__()
        self.base = base.requires_grad_(False).eval()
        self.process, self.shape, self.channels = base.process, base.shape, base.channels
        self.vocabulary, self.hidden, self.arch, self.scale = tuple(vocabulary), hidden, arch, scale
        self.enabled = True
        """False: the base alone."""
        kind = {"cross": Cross, "additive": Additive}[arch]
        self.text = text
        self.embedded = Embedded(hidden, vocabulary, text)
        device = next(base.parameters()).device
        _, number = base.inputs(
            torch.zeros(1, *base.shape, device=device), torch.tensor([base.process.t_max], device=device)
        )
        self.unit = max(1.0, float(number.abs().max()))
        """The conditioning number is divided by this before it is embedded, so that it is at most about 1."""
        self.sites = sites(base.net)
        self.adapters = nn.ModuleList(kind(*widths, hidden) for widths in self.sites.values())

    def forward(
        self,
        x: Tensor,
        t: Time,
        cond: Condition | None = None,
        *,
        features: bool = False,
        w: Tensor | float | None = None,
    ) -> Tensor | tuple[Tensor, Features]:
        """As of a denoiser; ``w`` (B,) or a number is the guidance scale, :attr:`scale` by default."""
        times = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(len(x))
        asked = Condition.none(len(x)) if cond is None else cond
        if not self.enabled:
            return self.base(x, times, asked, features=features)  # type: ignore[no-any-return]
        scale = torch.as_tensor(self.scale if w is None else w, dtype=x.dtype, device=x.device).expand(len(x))
        embedded = self.embedded(scale, self.base.inputs(x, times)[1] / self.unit, asked)
        with self._attached(embedded):
            return self.base(x, times, asked, features=features)  # type: ignore[no-any-return]

    def denoise(self, x: Tensor, t: Tensor, cond: Condition, features: bool) -> Tensor | tuple[Tensor, Features]:
        return self(x, t, cond, features=features)  # type: ignore[no-any-return]

    @contextmanager
    def _attached(self, embedded: Tensor) -> Iterator[None]:
        """Adapters at their sites, for embeddings (B, L, D)."""

        def hook(adapter: nn.Module) -> Callable[..., Tensor]:
            def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
                added = adapter(as_tokens(args[0]).to(embedded.dtype), embedded)
                return output + shaped(added, output).to(output.dtype)

            return add

        with ExitStack() as stack:
            for name, adapter in zip(self.sites, self.adapters, strict=True):
                handle = self.base.net.get_submodule(name).register_forward_hook(hook(adapter))
                stack.callback(handle.remove)
            yield

    def at(self, scale: float) -> Adapted:
        """The same weights at another guidance scale."""
        view = copy(self)
        view.scale = scale
        return view

    def onto(self, base: NetDenoiser) -> Adapted:
        """These adapters on another network of the same architecture, such as the base after further training."""
        other = Adapted(base, self.vocabulary, self.hidden, self.arch, self.scale, self.text)
        for mine, theirs in ((self.embedded, other.embedded), (self.adapters, other.adapters)):
            theirs.load_state_dict(mine.state_dict())
        return other.to(next(self.parameters()).device)

    @property
    def share(self) -> float:
        """Parameters of adapters and embeddings, as a share of those of the base."""
        added = count_parameters(self) - count_parameters(self.base)
        return added / count_parameters(self.base)

    def save(self, folder: Path) -> None:
        """Write base and adapters; called by :func:`~kdbench.tracks.diffusion.networks.build.save_denoiser`."""
        save_denoiser(self.base, folder / "base")
        parts = {**self._state("embedded"), **self._state("adapters")}
        save_file(parts, folder / "adapters.safetensors")
        state = {name: getattr(self, name) for name in ("vocabulary", "hidden", "arch", "scale", "text")}
        (folder / "adapters.json").write_text(json.dumps(state) + "\n")

    def _state(self, part: str) -> dict[str, Tensor]:
        state = getattr(self, part).state_dict()
        return {f"{part}.{name}": value.detach().cpu().contiguous() for name, value in state.items()}

    @classmethod
    def load(cls, folder: Path) -> Adapted:
        """Read what :meth:`save` wrote, on the CPU."""
        base = load_denoiser(folder / "base")
        assert isinstance(base, NetDenoiser)
        state = json.loads((folder / "adapters.json").read_text())
        made = cls(base, **state)
        missing, unknown = made.load_state_dict(load_file(folder / "adapters.safetensors"), strict=False)
        if unknown or any(not name.startswith("base.") for name in missing):
            raise ArtifactError(f"the adapters in {folder} do not fit their base")
        return made


def further_trained(task: DiffusionTask) -> NetDenoiser:
    """Another checkpoint of the teacher: trained further, for a quarter of the task's steps, on the first half of the
    classes alone. Made once, for what adapters do on another base; no cost of a job.
    """
    steps = max(1, int(task.spec.limits["steps"]) // 4)
    training = Training(steps=steps, batch_size=task.spec.recipe.batch_size, lr=2e-4, ema=0.98)
    key = {"teacher": task.spec.teacher_identity(), "training": training.model_dump(mode="json")}

    def make(folder: Path) -> None:
        split = task.split("train")
        if split.cond.tokens is None:
            raise UsageError(f"{task.spec.name} has no classes, of which another checkpoint learns some")
        classes = split.cond.tokens[:, 0]
        rows = (classes <= classes.max() // 2).nonzero()[:, 0]

        def batch(size: int, generator: torch.Generator) -> tuple[Tensor, Condition]:
            chosen = rows[torch.randint(len(rows), (size,), generator=generator).to(rows.device)]
            return split.x[chosen], split.cond[chosen]

        save_denoiser(train(task.score_network(), training, batch, seed=1), folder)

    found = load_denoiser(task.cache.get("further-trained", key, make))
    assert isinstance(found, NetDenoiser)
    return task.place(found).eval()  # type: ignore[no-any-return]
