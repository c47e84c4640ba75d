"""Vision transformers whose modules compute adaptively: adaptive computation modules after Wójcik et al., AAAI 2025.

An ACM is a sequence of N learners, each a two-layer MLP of 1/N of the width; with budget k its output is the sum of the
first k, A_k(x) = L_1(x) + ... + L_k(x) and A_0 = 0. A gate chooses k for every token. In eval mode a learner runs on
the tokens that chose it and on no others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.tracks.vision.models.base import Classifier, Taps
from kdbench.tracks.vision.models.vit import Attention, ViT

PARTS = ("ffn", "q", "k", "v", "o")
"""What can be replaced in a block: its MLP, the three input projections of attention and the output projection."""


class Gate(nn.Module):
    """Number of learners for each token: an MLP with one output per choice, ``least`` to N."""

    def __init__(self, d: int, learners: int, *, least: int = 0, hidden: int = 16, depth: int = 3) -> None:
        """``depth`` linear layers with GELU between them, ``hidden`` wide."""
        super().__init__()
        self.least, self.tau = least, 0.8
        widths = [d, *[hidden] * (depth - 1), learners + 1 - least]
        layers: list[nn.Module] = []
        for d_in, d_out in pairwise(widths):
            layers += [nn.Linear(d_in, d_out), nn.GELU()]
        self.net = nn.Sequential(*layers[:-1])
        self.tilt = 0.0
        """Added to the logits per learner, to move along the curve of cost and accuracy; 0 in training."""

    def logits(self, x: Tensor) -> Tensor:
        """(..., N + 1 - least)."""
        return self.net(x)

    def forward(self, x: Tensor) -> Tensor:
        """(..., N + 1) one-hot: a straight-through Gumbel sample while training, the largest logit otherwise."""
        logits = self.logits(x)
        if self.training:
            choice = F.gumbel_softmax(logits.float(), tau=self.tau, hard=True)
        else:
            logits = logits + self.tilt * torch.arange(logits.shape[-1], device=logits.device)
            choice = F.one_hot(logits.argmax(-1), logits.shape[-1]).to(x.dtype)
        return F.pad(choice, (self.least, 0))


class ACM(nn.Module):
    """N learners and a gate in place of a module from ``d_in`` to ``d_out`` features; tokens are (..., d_in)."""

    def __init__(
        self, d_in: int, d_out: int, hidden: int, learners: int, *, least: int = 0, gate: tuple[int, int] = (16, 3)
    ) -> None:
        """``hidden`` is the width of all learners together, ``gate`` the hidden width and depth of the gate."""
        if not 1 <= learners <= hidden:
            raise ValueError(f"{learners} learners cannot share a hidden width of {hidden}")
        super().__init__()
        self.learners, self.least, width = learners, least, round(hidden / learners)
        self.fixed: int | None = None
        """Learners for every token, in place of the gate."""
        self.w1, self.b1 = nn.Parameter(torch.empty(learners, d_in, width)), nn.Parameter(torch.empty(learners, width))
        self.w2, self.b2 = nn.Parameter(torch.empty(learners, width, d_out)), nn.Parameter(torch.empty(learners, d_out))
        for fan_in, tensors in ((d_in, (self.w1, self.b1)), (width, (self.w2, self.b2))):
            for tensor in tensors:
                nn.init.uniform_(tensor, -(fan_in**-0.5), fan_in**-0.5)
        self.gate = Gate(d_in, learners, least=least, hidden=gate[0], depth=gate[1])

    def cost(self) -> int:
        """Multiply-adds of one learner for one token."""
        return self.w1[0].numel() + self.w2[0].numel()

    def learn_only(self, which: str) -> None:
        """Let nothing but the ``learners`` or the ``gate`` be trained."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("gate.") == (which == "gate"))

    def learner(self, i: int, x: Tensor) -> Tensor:
        """L_{i+1}(x): (R, d_in) to (R, d_out)."""
        return torch.addmm(self.b2[i], F.gelu(torch.addmm(self.b1[i], x, self.w1[i])), self.w2[i])

    def prefixes(self, x: Tensor, *, detach: bool = False) -> Tensor:
        """A_0 to A_N of each token: (..., N + 1, d_out).

        With ``detach`` the sum before a learner is a constant, so that each learner fits what the earlier ones left.
        """
        rows = x.reshape(-1, x.shape[-1])
        hidden = F.gelu(torch.einsum("rd,ndm->nrm", rows, self.w1) + self.b1[:, None])
        each = (torch.bmm(hidden, self.w2) + self.b2[:, None]).transpose(0, 1)
        sums = each.cumsum(1)
        if detach:
            sums = each + (sums - each).detach()
        return F.pad(sums, (0, 0, 1, 0)).view(*x.shape[:-1], self.learners + 1, -1)

    def masked(self, x: Tensor, k: Tensor) -> Tensor:
        """A_k(x) with an own k (...,) for each token (..., d_in); learner i runs on the tokens with k >= i alone."""
        rows, counts = x.reshape(-1, x.shape[-1]), k.reshape(-1)
        out = rows.new_zeros(len(rows), self.w2.shape[-1])
        for i in range(self.learners):  # learner i + 1: the largest k, N, needs the last one
            chosen = torch.nonzero(counts > i).flatten()
            if not len(chosen):
                break
            out = out.index_add(0, chosen, self.learner(i, rows[chosen]))
        return out.view(*x.shape[:-1], -1)

    def forward(self, x: Tensor) -> Tensor:
        if self.fixed is not None:
            return self.masked(x, x.new_full(x.shape[:-1], self.fixed, dtype=torch.int64))
        choice = self.gate(x)
        if self.training:
            return (choice.unsqueeze(-1) * self.prefixes(x)).sum(-2)
        return self.masked(x, choice.argmax(-1))


class Projections(nn.Module):
    """The fused input projection of attention as three, some of them adaptive; (..., d) to (..., 3 d)."""

    def __init__(self, d: int, adaptive: Sequence[str], make: Callable[[], ACM]) -> None:
        super().__init__()
        for name in ("q", "k", "v"):
            self.add_module(name, make() if name in adaptive else nn.Linear(d, d))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)


class AcmViT(Classifier):
    """A ``vit(d, L, h)`` whose MLPs, and on demand attention projections, are ACMs of the same cost at k = N."""

    kind = "acm_vit"

    def __init__(
        self,
        d: int,
        L: int,
        h: int,
        *,
        num_classes: int,
        size: int = 16,
        learners: int = 4,
        parts: Sequence[str] = ("ffn",),
        gate: Sequence[int] = (16, 3),
        fixed: int | None = None,
    ) -> None:
        """``parts`` of :data:`PARTS`; ``gate``: hidden width and depth; ``fixed``: learners, in place of gates."""
        unknown = sorted(set(parts) - set(PARTS))
        if unknown or not parts:
            raise ValueError(f"parts is a choice of {', '.join(PARTS)}, not {', '.join(unknown) or 'empty'}")
        super().__init__()
        self.num_classes = num_classes
        self.config = {
            "d": d, "L": L, "h": h, "num_classes": num_classes, "size": size, "learners": learners,
            "parts": list(parts), "gate": list(gate), "fixed": fixed,
        }  # fmt: skip
        self.network = ViT(d, L, h, num_classes=num_classes, size=size)
        self.parts = [part for part in PARTS if part in parts]
        shape = (int(gate[0]), int(gate[1]))

        def projection() -> ACM:  # of rank d / 2 in all, the cost of d x d; every token needs some projection
            return ACM(d, d, max(learners, d // 2), learners, least=1, gate=shape)

        for block in self.network.blocks:
            attention: Attention = block.attn
            if "ffn" in parts:
                block.mlp = ACM(d, d, 2 * d, learners, gate=shape)
            if {"q", "k", "v"} & set(parts):
                attention.qkv = Projections(d, parts, projection)
            if "o" in parts:
                attention.proj = projection()
        self.set_fixed(fixed)

    def acms(self) -> dict[str, ACM]:
        """By qualified name, block after block."""
        return {name: module for name, module in self.named_modules() if isinstance(module, ACM)}

    def set_fixed(self, learners: int | None) -> None:
        """So many learners for every token (at least each module's least), or the gates' choice for None."""
        for acm in self.acms().values():
            acm.fixed = None if learners is None else max(learners, acm.least)
        self.config = {**self.config, "fixed": learners}

    @torch.no_grad()
    def adopt(self, teacher: ViT) -> None:
        """Take over the weights of all that is not replaced from a network of the same shape."""
        state = teacher.state_dict()
        for name in [name for name in state if ".attn.qkv." in name]:
            for part, chunk in zip(("q", "k", "v"), state[name].chunk(3), strict=True):
                state[name.replace(".qkv.", f".qkv.{part}.")] = chunk
        own = self.network.state_dict()
        adaptive = tuple(name.removeprefix("network.") + "." for name in self.acms())
        for name, tensor in own.items():
            if not name.startswith(adaptive):
                tensor.copy_(state[name])

    def watched(self, teacher: ViT, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Logits of the teacher, and the input and output of each module that an ACM replaces, as in :meth:`acms`."""
        seen: list[tuple[Tensor, Tensor]] = []

        def mlp(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            seen.append((args[0], out))

        def qkv(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            chunks = zip(("q", "k", "v"), out.chunk(3, dim=-1), strict=True)
            seen.extend((args[0], chunk) for part, chunk in chunks if part in self.parts)

        handles = []
        for block in teacher.blocks:
            handles.append(block.attn.qkv.register_forward_hook(qkv))
            if "o" in self.parts:
                handles.append(block.attn.proj.register_forward_hook(mlp))
            if "ffn" in self.parts:
                handles.append(block.mlp.register_forward_hook(mlp))
        try:
            logits = teacher(x)
        finally:
            for handle in handles:
                handle.remove()
        return logits, seen

    def routed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and the choices of all gates (B, T, modules, N + 1) one-hot, class token first."""
        choices: list[Tensor] = []
        gates = [acm.gate for acm in self.acms().values()]
        handles = [gate.register_forward_hook(lambda module, args, out: choices.append(out)) for gate in gates]
        try:
            logits = self(x)
        finally:
            for handle in handles:
                handle.remove()
        return logits, torch.stack(choices, dim=2)

    def head(self) -> nn.Linear:
        return self.network.head()

    def taps(self, x: Tensor) -> Taps:
        return self.network.taps(x)
