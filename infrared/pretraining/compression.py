"""Makes a pre-trained ViT smaller by low-rank layers: `crossband infrared compress` (PELA).

The checkpoint has the keys of the ViT, but for `<layer>.u` (O, r) and `<layer>.v` (r, I) in place
of `<layer>.weight`; its configuration lists the ranks under `low_rank`. `vit_files.open_vit` reads
it, `shared.tuning.low_rank.shape_like` prepares any other network for it, and `--merge` writes
plain layers again, which every loader takes.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from crossband.infrared.catalog import MEAN, STD
from crossband.infrared.data.images import batches, frame_store, gather, shortened, still_images
from crossband.infrared.data.pool import Pool, PoolImages
from crossband.infrared.pretraining.config import CompressConfig
from crossband.infrared.unip.analysis import measure
from crossband.infrared.unip.model import UNIPViT
from crossband.infrared.unip.vit_files import network_facts, open_vit
from crossband.shared.checkpoints import save_checkpoint
from crossband.shared.cli.output import format_table, print_json
from crossband.shared.config import OptimizerConfig, ScheduleConfig
from crossband.shared.devices import select_device
from crossband.shared.environment import machine
from crossband.shared.errors import ConfigError, CrossbandError
from crossband.shared.training.optimizers import build_optimizer, build_schedule
from crossband.shared.training.sampler import EpochBatchSampler
from crossband.shared.tuning.lora import EVERY_LAYER
from crossband.shared.tuning.low_rank import PELATask, low_rank, merge_low_rank


def compress(config: CompressConfig) -> None:
    """Replace layers, teach the result a little if asked, compare, write it."""
    if not config.out.endswith(".safetensors"):
        raise ConfigError(f"--out {config.out}: a checkpoint ends in .safetensors.")
    if Path(config.out).resolve() == Path(config.weights).resolve():
        raise ConfigError(f"--out {config.out} would replace the weights: name another file.")
    if config.precision != "32":
        raise ConfigError(f"--precision {config.precision}: layers are compressed in 32 bits.")
    if config.steps < 0 or config.rank < 0:
        raise ConfigError("--steps and --rank must be at least 0.")
    opened = open_vit(config.weights, config.model)
    pool = gather(config.data)
    channels = opened.model.patch_embed.proj.in_channels
    images = still_images(config.data, pool, config.size, config.images, channels)
    device = select_device(config.device)
    original = opened.model.to(device)
    small = copy.deepcopy(original)
    ranks = low_rank(
        small,
        rank=config.rank or None,
        ratio=None if config.rank else config.ratio,
        targets=config.targets or EVERY_LAYER,
    )
    if not ranks:
        raise ConfigError(
            f"--rank {config.rank}: two layers of that rank would not be smaller than one, so "
            "nothing was replaced; give a smaller rank, or --ratio."
        )
    say = (lambda line: None) if config.quiet or config.json else print
    say("\n".join([opened.report, *shortened(pool.notes)]))
    sizes = [sum(p.numel() for p in network.parameters()) for network in (original, small)]
    errors = {"after replacing": feature_errors(small, original, images, config.batch_size)}
    if config.steps:
        _teach(config, small, original, pool, channels, say)
        errors["after teaching"] = feature_errors(small, original, images, config.batch_size)
    curves = [
        [layer.nmi for layer in measure(network, batches(images, config.batch_size, device))[0]]
        for network in (original, small)
    ]
    names = [f"error {when}" for when in errors]
    rows = [
        dict(zip(("layer", "nmi", "nmi of low rank", *names), row, strict=True))
        for row in zip(range(1, len(curves[0]) + 1), *curves, *errors.values(), strict=True)
    ]
    outcome = {
        "parameters": {"before": sizes[0], "after": sizes[1]},
        "layers": rows,
        "protocol": {
            "weights": config.weights,
            "images": len(images),
            "data": list(config.data.root),
            "size": config.size,
            "steps": config.steps,
            "error": "squared error of a block's output over its squared norm, mean over images",
            "machine": machine(),
        },
    }
    facts = {
        "task": "pre-training",
        "model": network_facts(opened.arguments),
        "normalisation": {"mean": list(MEAN[:channels]), "std": list(STD[:channels])},
        "low_rank": {"ranks": ranks, "merged": config.merge},
        **outcome,
    }
    finished = merge_low_rank(small) if config.merge else small
    save_checkpoint(config.out, finished.state_dict(), facts)
    if config.json:
        print_json({"weights": config.out, **outcome})
        return
    print(format_table(list(rows[0]), [tuple(row.values()) for row in rows]))
    print(
        f"{len(ranks)} layers of low rank; parameters {sizes[0]:,} -> {sizes[1]:,} "
        f"({sizes[0] / sizes[1]:.2f} times fewer)\nweights: {config.out}"
    )


@torch.no_grad()
def feature_errors(
    model: UNIPViT, original: UNIPViT, images: Dataset[dict[str, Tensor]], batch_size: int
) -> list[float]:
    """Return for each block the squared error of its output over the squared norm, mean of images.

    Args:
        model: Compressed.
        original: What it was.
        images: Items.
        batch_size: Images at a time.
    """
    sums, count = torch.zeros(len(original.blocks)), 0
    for image in batches(images, batch_size, original.pos_embed.device):
        wanted, found = original.embed_tokens(image).x, model.embed_tokens(image).x
        for number, (block, other) in enumerate(zip(original.blocks, model.blocks, strict=True)):
            wanted, found = block(wanted), other(found)
            error = (found - wanted).square().flatten(1).sum(1)
            sums[number] += (error / wanted.square().flatten(1).sum(1)).sum().cpu()
        count += len(image)
    return (sums / count).tolist()


def _teach(
    config: CompressConfig,
    small: UNIPViT,
    original: UNIPViT,
    pool: Pool,
    channels: int,
    say: Any,
) -> None:
    """Train the low-rank network to give the original's features on crops of the images."""
    optimizer = OptimizerConfig(lr=config.lr, weight_decay=0.0)
    schedule = ScheduleConfig(min_lr=0.0)
    task = PELATask(small, optimizer, schedule, teacher=original)
    step_by = build_optimizer(small, optimizer)
    rates = build_schedule(step_by, schedule, config.lr, 1, config.steps)
    items = PoolImages(
        pool.paths,
        config.size,
        frame_store(config.data),
        random=True,
        seed=config.seed,
        channels=channels,
    )
    order = EpochBatchSampler(len(items), config.batch_size, seed=config.seed)
    device = original.pos_embed.device
    small.train()
    step = 0
    while step < config.steps:
        for indices in order:
            image = default_collate([items[index] for index in indices])["image"].to(device)
            loss = task.loss({"image": image})
            if not torch.isfinite(loss):
                raise CrossbandError(
                    f"The loss became {float(loss.detach())} at step {step + 1}: lower --lr "
                    f"{config.lr:g}."
                )
            step_by.zero_grad()
            loss.backward()
            step_by.step()
            rates.step()
            step += 1
            if step % max(1, config.steps // 10) == 0:
                say(f"step {step}/{config.steps}  loss {float(loss.detach()):.5f}")
            if step == config.steps:
                break
        order.set_epoch(order.epoch + 1)
    small.eval()
