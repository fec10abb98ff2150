"""Masked pre-training: the step at 90 % masking, without masking, and in the plain formulation.

    python benchmarks/medical_mae.py --model mae_vit_small_dec512d2b --batch 16 --rounds 7

One process, rounds interleaved, medians; all networks have the same weights and take the same
images (B, 3, S, S) and noise. A step is forward, loss and backward. `plain`: the authors'
formulation (medical_mae, Apache-2.0) in timm's blocks. `mask tokens`: plain too, but the encoder
sees a token for every patch, hidden or not, as in SimMIM and BEiT. `unmasked`: ours with one patch
hidden, for what the encoder costs on a whole image. `waiting`: the share of a training run's time
that the loader makes it wait, from `crossband medical pretrain` on --data, a folder of images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import crossband.shared.compat  # noqa: F401 - before timm

# isort: split
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from crossband.shared.benchmark import interleave
from crossband.shared.environment import machine
from crossband.shared.pretraining.mae import MAE
from crossband.shared.registry import create_model


class Plain(nn.Module):
    """The authors' formulation over the weights of ours.

    Args:
        ours: Network whose weights are taken.
        skip: Leave hidden patches out of the encoder; else they are mask tokens there.
    """

    def __init__(self, ours: MAE, skip: bool = True) -> None:
        """Build timm's blocks and load the weights."""
        super().__init__()
        self.ours, self.skip = ours, skip
        self.blocks = _blocks(ours.blocks)
        self.decoder_blocks = _blocks(ours.decoder_blocks)
        self.hidden = nn.Parameter(torch.zeros(1, 1, ours.embed_dim))

    def forward(self, image: Tensor, noise: Tensor) -> Tensor:
        """Return the loss."""
        ours = self.ours
        x = ours.patch_embed.proj(image).flatten(2).transpose(1, 2) + ours.pos_embed[:, 1:]
        count, dim = x.shape[1], x.shape[2]
        kept = int(count * (1 - ours.mask_ratio))
        order = torch.argsort(noise, dim=1)
        restore = torch.argsort(order, dim=1)
        mask = torch.ones_like(noise)
        mask[:, :kept] = 0
        mask = torch.gather(mask, 1, restore)
        if self.skip:
            x = torch.gather(x, 1, order[:, :kept, None].repeat(1, 1, dim))
        else:
            x = torch.where(mask[..., None].bool(), self.hidden + ours.pos_embed[:, 1:], x)
        token = (ours.cls_token + ours.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = self.blocks(torch.cat((token, x), dim=1))
        x = ours.decoder_embed(ours.norm(x))
        if self.skip:
            tokens = ours.mask_token.repeat(len(x), count + 1 - x.shape[1], 1)
            drawn = torch.cat([x[:, 1:], tokens], dim=1)
            drawn = torch.gather(drawn, 1, restore[..., None].repeat(1, 1, x.shape[2]))
            x = torch.cat([x[:, :1], drawn], dim=1)
        x = self.decoder_blocks(x + ours.decoder_pos_embed)
        pred = ours.decoder_pred(ours.decoder_norm(x))[:, 1:]
        return ours.pixel_loss(image, pred, mask)


def _blocks(ours: nn.ModuleList) -> nn.Sequential:
    first = ours[0]
    width, heads = first.norm1.normalized_shape[0], first.attn.num_heads
    ratio = first.mlp.fc1.out_features / width
    norm = partial(nn.LayerNorm, eps=1e-6)
    theirs = nn.Sequential(
        *(Block(width, heads, mlp_ratio=ratio, qkv_bias=True, norm_layer=norm) for _ in ours)
    )
    theirs.load_state_dict(ours.state_dict())
    return theirs


def steps(name: str, batch: int, size: int) -> dict[str, Callable[[], None]]:
    """Return the contenders; all but two give the same loss, which is checked."""
    torch.manual_seed(0)
    ours = create_model(name, mask_ratio=0.9, img_size=size)
    whole = create_model(name, mask_ratio=1.5 / (ours.grid[0] * ours.grid[1]), img_size=size)
    whole.load_state_dict(ours.state_dict())
    plain, tokens = Plain(ours), Plain(ours, skip=False)
    image, noise = torch.randn(batch, 3, size, size), torch.rand(batch, ours.grid[0] * ours.grid[1])
    torch.testing.assert_close(ours(image, noise).loss, plain(image, noise), rtol=1e-4, atol=1e-5)
    losses: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        "ours, 90 % masked": (ours, lambda: ours(image, noise).loss),
        "plain, 90 % masked": (plain, lambda: plain(image, noise)),
        "mask tokens, 90 % masked": (tokens, lambda: tokens(image, noise)),
        "ours, unmasked": (whole, lambda: whole(image, noise).loss),
    }

    def step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            model.zero_grad(set_to_none=True)
            loss().backward()

        return run

    return {label: step(*pair) for label, pair in losses.items()}


def waiting(data: str, model: str, cache_gb: float, workers: int) -> dict[str, float]:
    """Return the share of time that training waited for data, and steps per second."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            *("crossband", "medical", "pretrain", "--recipe", "xray", "--model", model),
            *("--data.root", data, "--precision", "32", "--out", f"{folder}/run", "--quiet"),
            *("--data.cache_gb", str(cache_gb), "--loader.num_workers", str(workers)),
            *("--loader.batch_size", "16", "--trainer.max_epochs", "2"),
            *("--trainer.limit_train_batches", "6"),
        ]
        subprocess.run([str(Path(sys.executable).parent / words[0]), *words[1:]], check=True)
        result = json.loads((Path(folder) / "run" / "metrics.json").read_text())
    row = result["history"][-1]
    return {"waiting": row["waiting"], "steps/s": row["step"] / (60 * row["minutes"])}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mae_vit_small_dec512d2b")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--data", help="folder of images, to measure the loader on")
    given = parser.parse_args()
    print(f"{given.model}, batch {given.batch}, {given.size} px, {machine()}")
    contenders = steps(given.model, given.batch, given.size)
    taken = interleave(list(contenders.values()), given.rounds, torch.device("cpu"))
    base = statistics.median(taken[0])
    for label, times in zip(contenders, taken, strict=True):
        median = statistics.median(times)
        print(f"{label:28} {1000 * median:8.0f} ms   {median / base:5.2f} x ours")
    if given.data:
        for cache, workers in ((0, 0), (0, 1), (2, 0)):
            found = waiting(given.data, "vit_small", cache, workers)
            print(
                f"cache {cache} GB, {workers} loader process(es): waiting "
                f"{100 * found['waiting']:.1f} %, {found['steps/s']:.2f} steps/s"
            )


if __name__ == "__main__":
    main()
