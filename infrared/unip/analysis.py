"""What the attention of a ViT looks like, layer by layer: plain functions and running sums.

Attention is local (each query sees its neighbourhood), global (every query sees the same) or a
hybrid of both; UNIP distils a hybrid layer. The normalised mutual information between queries and
keys tells which it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from crossband.shared.backbones.vit import Tokens, ViTTrunk
from crossband.shared.errors import ConfigError

Pattern = Literal["local", "hybrid", "global"]
HYBRID_NMI = 0.09
# Ours: halfway (in ratio) between the paper's hybrid value and clear cases of the other patterns.
LOCAL_ABOVE, GLOBAL_BELOW = 0.25, 0.03


def patch_attention(attention: Tensor, prefix: int = 1, eps: float = 1e-8) -> Tensor:
    """Drop class and register tokens, add `eps`, and let the rows sum to one again.

    Args:
        attention: (..., prefix + N, prefix + N), rows are queries.
        prefix: Tokens in front that are no patches.
        eps: Added to every entry.

    Returns:
        (..., N, N).
    """
    maps = attention[..., prefix:, prefix:] + eps
    return maps / maps.sum(-1, keepdim=True)


def nmi(attention: Tensor) -> Tensor:
    """Return the normalised mutual information of queries and keys, `I / sqrt(H(q) H(k))`.

    Queries count alike: `p(q, k) = A[q, k] / N` (Park et al. 2023, arXiv 2305.00729).

    Args:
        attention: (..., N, N), rows sum to one (`patch_attention`).

    Returns:
        (...): 1 where every query has its own key, 0 where the attention is the same for all.
    """
    keys = attention.mean(-2)
    tiny = torch.finfo(keys.dtype).tiny  # a key that nobody looks at adds nothing
    ratio = attention / keys.clamp_min(tiny).unsqueeze(-2)
    information = torch.xlogy(attention, ratio).sum((-2, -1)) / attention.shape[-2]
    entropy = -torch.xlogy(keys, keys).sum(-1)
    return information / (math.log(attention.shape[-2]) * entropy).sqrt()


def patch_distances(grid: tuple[int, int], patch_size: float, device: torch.device) -> Tensor:
    """Return the distances between the centres of patches, (N, N) in pixels, row-major."""
    axes = [torch.arange(n, device=device, dtype=torch.float32) * patch_size for n in grid]
    y, x = torch.meshgrid(*axes, indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], dim=1)
    return (places[:, None] - places[None]).square().sum(-1).sqrt()


def attention_distance(attention: Tensor, grid: tuple[int, int], patch_size: float) -> Tensor:
    """Return how far queries look, in pixels: mean of attention times distance.

    Args:
        attention: (..., N, N), rows sum to one (`patch_attention`).
        grid: Rows and columns of the patches, N together.
        patch_size: Side of a patch in pixels.

    Returns:
        (...).

    Raises:
        ConfigError: a grid of another number of patches.
    """
    if attention.shape[-1] != grid[0] * grid[1]:
        raise ConfigError(
            f"Attention over {attention.shape[-1]} patches does not fit a grid of {grid[0]} x "
            f"{grid[1]}: drop class and register tokens first."
        )
    far = patch_distances(grid, patch_size, attention.device).to(attention.dtype)
    return (attention * far).sum(-1).mean(-1)


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Return the centred kernel alignment of two sets of features, in [0, 1].

    `||X^T Y||_F^2 / (||X^T X||_F ||Y^T Y||_F)` (Kornblith et al. 2019, equation 5).

    Args:
        x: (n, D) of the same n samples.
        y: (n, E).
    """
    x, y = x - x.mean(0), y - y.mean(0)
    return (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())


def fourier_amplitude(features: Tensor) -> Tensor:
    """Return log amplitudes from low to high frequencies, relative to the lowest.

    Of the diagonal of the spectrum, mean over images and channels (Park & Kim 2022).

    Args:
        features: Maps (B, D, rows, columns).

    Returns:
        (K,), K half of the shorter side; the first entry, of the mean, is 0.
    """
    amplitude = (torch.fft.fft2(features.float()).abs() + 1e-6).log().mean((0, 1))
    steps = min(features.shape[-2:]) // 2 + 1
    rows, columns = (
        (torch.linspace(0, side // 2, steps)).round().long() for side in features.shape[-2:]
    )
    diagonal = amplitude[rows.to(amplitude.device), columns.to(amplitude.device)]
    return diagonal - diagonal[0]


def pattern(
    value: float, local_above: float = LOCAL_ABOVE, global_below: float = GLOBAL_BELOW
) -> Pattern:
    """Name the pattern of attention with an NMI.

    Raises:
        ConfigError: thresholds that cross.
    """
    if not 0 <= global_below < local_above:
        raise ConfigError(
            f"Attention is global below {global_below:g} and local above {local_above:g}: the "
            "first must be the smaller."
        )
    if value > local_above:
        return "local"
    return "global" if value < global_below else "hybrid"


def choose_layer(values: Sequence[float], target: float = HYBRID_NMI) -> int:
    """Return the layer, counted from 1, whose NMI is nearest to `target`; the first of equals.

    Raises:
        ConfigError: no layers, or none whose NMI is a number.
    """
    gaps = [abs(value - target) if math.isfinite(value) else math.inf for value in values]
    if not gaps or min(gaps) == math.inf:
        raise ConfigError("There is no layer to choose: the network has no finite NMI.")
    return gaps.index(min(gaps)) + 1


def walk(model: ViTTrunk, image: Tensor) -> Iterator[tuple[Tensor, Tokens]]:
    """Yield attention (B, heads, tokens, tokens) and output of one block after the other.

    Only one block's maps exist at a time.
    """
    found = model.embed_tokens(image)
    for block in model.blocks:
        logits: list[Tensor] = []
        found.x = block(found.x, logits)
        yield logits.pop().float().softmax(-1), found


@dataclass
class LayerSums:
    """Running sums over images of one layer.

    Attributes:
        heads: Images so far, times heads.
        nmi: Sum over images and heads.
        distance: Likewise, pixels.
        amplitude: Sum over images of `fourier_amplitude`.
        images: Images so far.
        features: Sampled tokens, float32 (n, D) each.
    """

    heads: int = 0
    nmi: float = 0.0
    distance: float = 0.0
    amplitude: Tensor | float = 0.0
    images: int = 0
    features: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class LayerFacts:
    """What is known of one layer.

    Attributes:
        number: Counted from 1.
        nmi: Mean over images and heads.
        distance: Mean attention distance in pixels.
        amplitude: Log amplitudes from low to high frequencies.
    """

    number: int
    nmi: float
    distance: float
    amplitude: tuple[float, ...]


@torch.no_grad()
def measure(
    model: ViTTrunk, batches: Iterable[Tensor], tokens_per_image: int = 0, eps: float = 1e-8
) -> tuple[list[LayerFacts], list[Tensor]]:
    """Measure every layer over images, a batch and a layer at a time.

    Args:
        model: In evaluation mode, on the images' device.
        batches: Images (B, C, H, W), normalised.
        tokens_per_image: Patches whose features are kept, evenly spread over the grid.
        eps: Of `patch_attention`.

    Returns:
        The layers, and the kept features of each (n, D).

    Raises:
        ConfigError: no images.
    """
    sums = [LayerSums() for _ in model.blocks]
    for image in batches:
        for total, (attention, found) in zip(sums, walk(model, image), strict=True):
            maps = patch_attention(attention, found.prefix, eps)
            total.heads += maps.shape[0] * maps.shape[1]
            total.images += maps.shape[0]
            total.nmi += float(nmi(maps).sum())
            total.distance += float(attention_distance(maps, found.grid, model.patch_size).sum())
            total.amplitude = total.amplitude + len(image) * fourier_amplitude(found.map()).cpu()
            if tokens_per_image:
                patches = found.patches()
                count = min(tokens_per_image, patches.shape[1])
                chosen = torch.linspace(0, patches.shape[1] - 1, count).round().long()
                total.features.append(patches[:, chosen].flatten(0, 1).float().cpu())
    if not sums or not sums[0].images:
        raise ConfigError("There are no images to measure attention on: give --data.root.")
    facts = [
        LayerFacts(
            number,
            total.nmi / total.heads,
            total.distance / total.heads,
            tuple((total.amplitude / total.images).tolist()),
        )
        for number, total in enumerate(sums, start=1)
    ]
    return facts, [torch.cat(total.features) for total in sums if total.features]


def cka_matrix(features: Sequence[Tensor]) -> Tensor:
    """Return the linear CKA of all pairs of layers, (L, L)."""
    centred = [x - x.mean(0) for x in features]
    own = [(x.T @ x).norm() for x in centred]
    result = torch.eye(len(features))
    for i, x in enumerate(centred):
        for j in range(i):
            result[i, j] = result[j, i] = (x.T @ centred[j]).square().sum() / (own[i] * own[j])
    return result
