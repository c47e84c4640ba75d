"""``gcn(L,d)``, ``gin(L,d)``, ``gat(L,d)``: networks with L layers of message passing and d features.

Messages follow the direction of edges. Nodes start with an embedding of their label; edges with labels add theirs to
what goes along them. After L layers the embeddings of the nodes that stand for a graph (all of it, or the roots of its
computation trees) are brought together and read by two linear layers. There is no batch normalisation: the embedding of
a node depends on what it can see alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.tracks.dataset_distillation.data.graphs import Graphs
from kdbench.tracks.dataset_distillation.networks.names import check_arch

HEADS = 4
"""Of attention, where the width can be divided by it."""


def scatter_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """(size, ...) sums of the rows of values (E, ...) that have the same index (E,)."""
    return values.new_zeros(size, *values.shape[1:]).index_add(0, index, values)


def scatter_softmax(scores: Tensor, index: Tensor, size: int) -> Tensor:
    """(E, H) softmax of scores (E, H) among the rows with the same index (E,)."""
    wide = index[:, None].expand_as(scores)
    top = scores.new_full((size, scores.shape[1]), -torch.inf).scatter_reduce(0, wide, scores.detach(), "amax")
    weights = (scores - top[index]).exp()
    return weights / scatter_sum(weights, index, size)[index]


class Layer(nn.Module):
    """One round of messages between nodes with ``width`` features, ``kinds`` edge labels."""

    def __init__(self, width: int, kinds: int) -> None:
        super().__init__()
        self.edge = nn.Embedding(kinds, width) if kinds > 1 else None

    def sent(self, h: Tensor, graphs: Graphs) -> Tensor:
        """(E, d): what goes along each edge."""
        found = h[graphs.edges[0]]
        return found if self.edge is None else F.relu(found + self.edge(graphs.kinds))


class Gin(Layer):
    """h_i' = MLP((1 + eps) h_i + sum_j h_j) (Xu et al., ICLR 2019, equation 4.1)."""

    def __init__(self, width: int, kinds: int) -> None:
        super().__init__(width, kinds)
        self.eps = nn.Parameter(torch.zeros(()))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, h: Tensor, graphs: Graphs) -> Tensor:
        around = scatter_sum(self.sent(h, graphs), graphs.edges[1], len(h))
        found: Tensor = self.mlp((1 + self.eps) * h + around)
        return found


class Gcn(Layer):
    """h_i' = W sum_j h_j / sqrt(d_i d_j) over the neighbours and i itself, d: degree plus 1.

    Kipf and Welling, ICLR 2017, equation 2. The degree is the number of edges that end in a node.
    """

    def __init__(self, width: int, kinds: int) -> None:
        super().__init__(width, kinds)
        self.linear = nn.Linear(width, width)

    def forward(self, h: Tensor, graphs: Graphs) -> Tensor:
        source, target = graphs.edges
        degree = 1 + torch.bincount(target, minlength=len(h)).to(h.dtype)
        scale = (degree[source] * degree[target]).rsqrt()[:, None]
        around = scatter_sum(scale * self.sent(h, graphs), target, len(h))
        found: Tensor = self.linear(around + h / degree[:, None])
        return found


class Gat(Layer):
    """h_i' = sum_j a_ij W h_j over the neighbours and i itself, a = softmax_j LeakyReLU(s^T W h_j + t^T W h_i).

    Velickovic et al., ICLR 2018, equations 3 to 5, with several heads side by side.
    """

    def __init__(self, width: int, kinds: int) -> None:
        super().__init__(width, kinds)
        self.heads = HEADS if width % HEADS == 0 else 1
        self.linear = nn.Linear(width, width)
        self.source = nn.Parameter(torch.empty(self.heads, width // self.heads))
        self.target = nn.Parameter(torch.empty(self.heads, width // self.heads))
        nn.init.xavier_uniform_(self.source)
        nn.init.xavier_uniform_(self.target)

    def forward(self, h: Tensor, graphs: Graphs) -> Tensor:
        own = torch.arange(len(h), device=h.device)
        to = torch.cat([graphs.edges[1], own])
        messages = self.linear(torch.cat([self.sent(h, graphs), h])).unflatten(1, (self.heads, -1))
        receiver = messages[len(graphs.kinds) :][to]  # the last ones are the nodes' own
        scores = F.leaky_relu((messages * self.source).sum(-1) + (receiver * self.target).sum(-1), 0.2)
        weights = scatter_softmax(scores, to, len(h))
        return scatter_sum(weights[..., None] * messages, to, len(h)).flatten(1)


LAYERS: dict[str, type[Layer]] = {"gcn": Gcn, "gin": Gin, "gat": Gat}


class GraphNet(nn.Module):
    """A classifier of graphs. Without edges, or with labels that it was not made for, see the errors of ``torch``."""

    def __init__(
        self, family: str, layers: int, width: int, *, labels: int, kinds: int, classes: int, pool: str, dropout: float
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(labels, width)
        self.layers = nn.ModuleList(LAYERS[family](width, kinds) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))
        self.pool = pool

    def embeddings(self, graphs: Graphs) -> Tensor:
        """(V, d) of the nodes after the last layer; there is a ReLU between layers."""
        h: Tensor = self.embedding(graphs.nodes)
        for number, layer in enumerate(self.layers):
            h = self.dropout(layer(F.relu(h) if number else h, graphs))
        return h

    def forward(self, graphs: Graphs) -> Tensor:
        """(G, K) logits."""
        h, owners = F.relu(self.embeddings(graphs)), graphs.owners
        if graphs.roots is not None:
            h, owners = h[graphs.roots], owners[graphs.roots]
        found = scatter_sum(h, owners, len(graphs))
        if self.pool == "mean":
            found = found / torch.bincount(owners, minlength=len(graphs)).clamp(min=1)[:, None]
        logits: Tensor = self.head(found)
        return logits


def layers_of(arch: str) -> int:
    """Layers of an architecture such as ``gin(3,32)``. Raises ``ValueError`` for one that is not for graphs."""
    family, _, rest = check_arch(arch).partition("(")
    if family not in LAYERS:
        raise ValueError(f"{arch} is no network for graphs; those are gcn(L,d), gin(L,d) and gat(L,d)")
    return int(rest.partition(",")[0])


def build_graph_net(arch: str, *, labels: int, kinds: int, classes: int, pool: str, dropout: float) -> GraphNet:
    """A network from its name, initialised from the global generators. Raises ``ValueError`` as :func:`layers_of`."""
    layers = layers_of(arch)
    family, _, rest = check_arch(arch).partition("(")
    width = int(rest.rstrip(")").partition(",")[2])
    return GraphNet(family, layers, width, labels=labels, kinds=kinds, classes=classes, pool=pool, dropout=dropout)
