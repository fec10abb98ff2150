"""Skill of graph-matching pre-training on small real sets: second order, first order, SimCLR, none.

    python benchmarks/lvm_med_skill.py pretrain --data medical/ --work skill/
    python benchmarks/lvm_med_skill.py train    --data medical/ --work skill/ --seeds 0 1 2
    python benchmarks/lvm_med_skill.py table    --data medical/ --work skill/

The data: nuclei/ (microscopy, index.csv) and cxr/ (radiographs with lung masks, labels.csv), each
with a split. Networks are pre-trained on the training images of both, without labels, for equal
steps, then trained as U-Nets for equal steps with 16 labelled images (drawn by the seed) or all.
Nothing is chosen on held-out images: the last weights are scored on those of val and test together.
Everything goes through `crossband medical`, one thread each. `table` prints means over seeds, and
intervals of the differences to scratch: resampled patients, scores of the seeds averaged.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossband.shared.metrics.ranking import bootstrap

WIDTHS = {"channels": [24, 48, 96, 192], "stem_width": 12}
NETWORK = {"backbone_arguments": WIDTHS, "decoder_channels": [64, 48, 32, 24, 16]}
MODEL = "--model timm:resnet10t"
CROPS = "--size 96 --crops.sizes 96 48 --crops.counts 2 1 --crops.colours"
PRETRAIN = (
    f"pretrain {MODEL} {CROPS} --loader.batch_size 64 --optimizer.lr 1e-3 "
    "--optimizer.weight_decay 0.01 --schedule.warmup_fraction 0.1 --data.val_fraction 0.1 "
    "--trainer.max_epochs 60"
)
GRAPHS = "--method lvm-med --matching.message_passing false --matching.noise 0.1"
ARMS = {
    "scratch": "",
    "SimCLR": "--method simclr",
    "first order": f"{GRAPHS} --matching.order 1",
    "second order": GRAPHS,
}
SPLITS = ("val", "test")


@dataclass(frozen=True)
class Task:
    """What is outlined, and from how many labels.

    Attributes:
        data: Folder within the data.
        table: Its csv.
        labels: Labelled images to learn from; 0: all.
        epochs: Passes over them.
    """

    data: str
    table: str
    labels: int
    epochs: int


TASKS = {
    "nuclei-16": Task("nuclei", "index.csv", 16, 120),
    "lungs-16": Task("cxr", "labels.csv", 16, 120),
    "nuclei-all": Task("nuclei", "index.csv", 0, 24),
}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("pretrain", "train", "table"))
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.what == "pretrain":
        roots = [part for name in ("nuclei", "cxr") for part in pool(given.data, given.work, name)]
        for arm in given.arms:
            out = given.work / "pretrained" / _safe(arm)
            if ARMS[arm] and not (out / "encoder.safetensors").is_file():
                crossband(f"{PRETRAIN} {ARMS[arm]}", *roots, "--out", out)
    elif given.what == "train":
        for seed in given.seeds:
            for name in given.tasks:
                for arm in given.arms:
                    run(name, arm, seed, given.data, given.work)
    else:
        for name in given.tasks:
            table(name, given.data, given.work)


def pool(data: Path, work: Path, name: str) -> list[object]:
    """Copy the training images of a set to a folder of their own."""
    folder = work / "pool" / name
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows_of(data, name):
        if row["split"] == "train":
            shutil.copy(data / name / row["image"], folder)
    return ["--data.root", folder]


def rows_of(data: Path, name: str) -> list[dict[str, str]]:
    """Return the rows of a set's csv."""
    file = next(task.table for task in TASKS.values() if task.data == name)
    with (data / name / file).open(encoding="utf-8") as table:
        return list(csv.DictReader(table))


def write_table(task: Task, data: Path, path: Path, seed: int) -> None:
    """Write a csv of images with masks; of those to learn from only so many, drawn by the seed."""
    column = "mask" if task.data == "nuclei" else "lung_mask"
    rows = [row for row in rows_of(data, task.data) if row[column]]
    train = sorted(row["image"] for row in rows if row["split"] == "train")
    kept = set(random.Random(seed).sample(train, task.labels) if task.labels else train)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "mask", "split", "patient_id"])
        for row in rows:
            if row["split"] != "train" or row["image"] in kept:
                patient = row.get("patient_id", row["image"])
                writer.writerow([row["image"], row[column], row["split"], patient])


def run(name: str, arm: str, seed: int, data: Path, work: Path) -> None:
    """Train one arm and score it on the held-out images."""
    task, out = TASKS[name], work / name / f"{_safe(arm)}_{seed}"
    if (out / "evaluation" / "metrics.json").is_file():
        return
    path = (work / f"{name}_{seed}.csv").resolve()
    write_table(task, data, path, seed)
    source = ("--data.root", data / task.data, "--data.table", path)
    weights: list[object] = []
    if ARMS[arm]:
        weights = ["--weights", work / "pretrained" / _safe(arm) / "encoder.safetensors"]
    crossband(
        f"train --task segmentation {MODEL} --size 128 --loader.batch_size 16 --optimizer.lr 1e-3 "
        "--schedule.warmup_fraction 0.05 --data.colours --augment.vertical_flip 0.5 "
        f"--trainer.select last --trainer.check_val_every_n_epoch {task.epochs // 2} "
        f"--trainer.max_epochs {task.epochs} --seed {seed} --quiet",
        *("--network.arguments", json.dumps(NETWORK), *source, *weights, "--out", out),
    )
    for split, folder in zip(SPLITS, ("evaluation-val", "evaluation"), strict=True):
        scored = ("--weights", out / "best.safetensors", *source, "--out", out / folder)
        crossband(f"evaluate --keep_ids --distances false --quiet --data.split {split}", *scored)


def crossband(text: str, *words: object) -> None:
    """Run `crossband medical ...` on one thread."""
    command = [str(Path(sys.executable).parent / "crossband"), "medical", *text.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *map(str, words)], check=True, env=environment)


def table(name: str, data: Path, work: Path) -> None:
    """Print the scores of all runs of a task, and differences to scratch."""
    found: dict[str, np.ndarray] = {}
    images: list[str] = []
    print(f"\n{name}")
    for arm in ARMS:
        folders = sorted((work / name).glob(f"{_safe(arm)}_[0-9]*"))
        runs = [f for f in folders if (f / "evaluation" / "metrics.json").is_file()]
        if not runs:
            continue
        rows = [_rows(folder) for folder in runs]
        images = sorted(rows[0])
        dice = np.array([[one[image] for image in images] for one in rows])
        found[arm] = dice.mean(0)
        values = ", ".join(f"{value:.4f}" for value in dice.mean(1))
        print(f"{arm:14} {dice.mean():.4f}  ({values})")
    patients = {row["image"]: row.get("patient_id", "") for row in rows_of(data, TASKS[name].data)}
    groups = [patients[image] or image for image in images]
    for arm, dice in found.items():
        for other in [o for o in ("scratch", "first order") if o in found and o != arm]:
            if arm == "scratch" or (other == "first order" and arm != "second order"):
                continue
            difference = bootstrap(_mean, [dice - found[other]], groups, count=4000)
            low, high = difference.low, difference.high
            print(f"{arm} - {other}: {difference.value:+.4f} [{low:+.4f}, {high:+.4f}]")
    print(f"{len(images)} images of {len(set(groups))} patients")


def _rows(folder: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in ("evaluation-val", "evaluation"):
        stored = json.loads((folder / part / "metrics.json").read_text(encoding="utf-8"))
        for row in stored["rows"]:
            found[row["image"]] = next(iter(row["dice"].values())) or 0.0
    return found


def _mean(values: np.ndarray) -> float:
    return float(values.mean())


def _safe(arm: str) -> str:
    return arm.replace(" ", "_")


if __name__ == "__main__":
    main()
