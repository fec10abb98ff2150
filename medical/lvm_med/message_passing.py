"""Message passing between the images of a graph, before they are matched (LVM-Med, section 3.1).

Both networks map node features (G, n, D) and edges (G, E, 2) to features (G, n, D') and serve both
graphs of a pair.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crossband.medical.lvm_med.graphs import end_points
from crossband.shared.errors import ConfigError

Degree = Literal["printed", "with_loops"]


class GCN(nn.Module):
    """Graph convolutions of the paper: H_l = ReLU(D^-1/2 (A + I) D^-1/2 H_{l-1} W_l).

    The last layer has no ReLU. Weights are (in, out), without biases.

    Args:
        dim: Channels of the nodes.
        width: Channels of every layer.
        layers: Number of layers.
        degree: `printed`: D counts the rows of A, as the paper prints it; `with_loops`: those of
            A + I, as Kipf and Welling do. A node without edges counts as 1, so it keeps itself.

    Raises:
        ConfigError: no layer, or an unknown degree.
    """

    def __init__(
        self, dim: int, width: int = 128, layers: int = 2, degree: Degree = "printed"
    ) -> None:
        """Draw the weights (Glorot)."""
        super().__init__()
        if layers < 1:
            raise ConfigError(f"Message passing in {layers} layers does nothing: give 1 or more.")
        if degree not in ("printed", "with_loops"):
            raise ConfigError(f"degree {degree!r} is not known: give 'printed' or 'with_loops'.")
        self.degree = degree
        sizes = [dim, *[width] * layers]
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(sizes[i], sizes[i + 1])) for i in range(layers)
        )
        for weight in self.weights:
            nn.init.xavier_uniform_(weight)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """Map (G, n, D) to (G, n, width)."""
        mix = self.propagation(edges, nodes.shape[1]).to(nodes)
        last = len(self.weights) - 1
        for number, weight in enumerate(self.weights):
            nodes = mix @ (nodes @ weight)
            nodes = F.relu(nodes) if number < last else nodes
        return nodes

    def propagation(self, edges: Tensor, count: int) -> Tensor:
        """Return D^-1/2 (A + I) D^-1/2, (G, n, n), with A_ij = 1 for every edge (i, j)."""
        adjacency = torch.zeros(len(edges), count, count, device=edges.device)
        graph = torch.arange(len(edges), device=edges.device)[:, None]
        adjacency[graph, edges[..., 0], edges[..., 1]] = 1
        loops = torch.eye(count, device=edges.device)
        counted = adjacency + loops if self.degree == "with_loops" else adjacency
        scale = counted.sum(-1).clamp(min=1).rsqrt()
        return scale[:, :, None] * (adjacency + loops) * scale[:, None, :]


class GraphConv(nn.Module):
    """One layer of the draft: W_rel (sum over incoming edges) + b + W_root x.

    Messages go along the edges, so a node hears those that chose it as a neighbour.
    """

    def __init__(self, dim: int, width: int) -> None:
        """Build both maps, under the names of PyG's layer."""
        super().__init__()
        self.lin_rel, self.lin_root = nn.Linear(dim, width), nn.Linear(dim, width, bias=False)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """Map (G, n, D) to (G, n, width)."""
        sent, _ = end_points(nodes, edges)
        place = edges[..., 1, None].expand_as(sent)
        heard = torch.zeros_like(nodes).scatter_add(1, place, sent)
        return self.lin_rel(heard) + self.lin_root(nodes)


class GraphConvs(nn.Module):
    """Message passing of the authors' draft: layers of `GraphConv`, ReLU and dropout between.

    Args:
        dim: Channels of the nodes.
        width: Channels of every layer.
        layers: Number of layers.
        dropout: Probability, in training.
    """

    def __init__(self, dim: int, width: int, layers: int = 2, dropout: float = 0.5) -> None:
        """Build the layers."""
        super().__init__()
        sizes = [dim, *[width] * layers]
        self.convs = nn.ModuleList(GraphConv(sizes[i], sizes[i + 1]) for i in range(layers))
        self.dropout = dropout

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """Map (G, n, D) to (G, n, width)."""
        for number, conv in enumerate(self.convs):
            if number:
                nodes = F.dropout(F.relu(nodes), self.dropout, self.training)
            nodes = conv(nodes, edges)
        return nodes
