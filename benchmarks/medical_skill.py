"""Skill on a small set of real chest X-rays: masked pre-training against scratch and rivals.

    python benchmarks/medical_skill.py pretrain --data cxr/ --work skill/
    python benchmarks/medical_skill.py lungs    --data cxr/ --work skill/ --seeds 0 1 2
    python benchmarks/medical_skill.py findings --data cxr/ --work skill/ --seeds 0 1 2
    python benchmarks/medical_skill.py table    --data cxr/ --work skill/

The data: images/, labels.csv with patients, a split by patients, views, findings and lung masks.
Everything goes through `crossband medical`, as a user would run it; arms that are compared train
for the same wall time (--minutes), one thread each, and their weights are chosen on validation
images. `table` prints test scores of every run, means over seeds, and intervals of the differences
to the pre-trained network: resampled patients, scores of the seeds averaged.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from crossband.shared.metrics.ranking import auroc, bootstrap, mean_auroc

NETWORK = {"embed_dim": 128, "depth": 8, "num_heads": 4}
SMALL = " ".join(f"{name}={value}" for name, value in NETWORK.items())
COLUMNS = ("AP view", "COVID-19", "Viral", "Bacterial")
MAE = "--weights {work}/mae/best.safetensors"
RECIPE = "--recipe lungs --trainer.check_val_every_n_epoch 2"
UNET = (
    "--task segmentation --model unet --size {side} --loader.batch_size 16 --optimizer.lr 1e-3 "
    "--optimizer.weight_decay 1e-5 --trainer.check_val_every_n_epoch 5"
)
SCHEDULE = "--schedule.warmup_fraction 0.1 --schedule.min_lr 1e-5 --loader.batch_size 32"
MILD = "--augment.crop_min 0.7 --augment.auto_augment="
VIT = (
    f"--model chest_mae_vit_tiny --network.arguments {SMALL} --network.drop_path 0.1 "
    f"{MILD} --optimizer.weight_decay 0.05 --optimizer.decay_norm_and_bias false "
    f"--optimizer.lr 1e-3 --trainer.ema_decay 0.95 {SCHEDULE}"
)
DENSE = (
    f"--model densenet121 --size 112 {MILD} --optimizer.lr 1e-3 "
    f"--optimizer.weight_decay 0.05 --trainer.ema_decay 0.95 {SCHEDULE}"
)
# Task -> arm -> options; {epochs} is what fits the minutes, so that schedules come to their end.
ARMS: dict[str, dict[str, tuple[str, int]]] = {
    "lungs": {
        "MAE ViT": (f"{RECIPE} {MAE}", 28),
        "scratch ViT": (f"{RECIPE} --optimizer.layer_decay 1", 28),
        "MONAI U-Net": (UNET.format(side=112), 150),
    },
    "findings": {
        "MAE ViT": (f"{VIT} --optimizer.layer_decay 0.9 {MAE}", 16),
        "scratch ViT": (VIT, 16),
        "DenseNet-121": (DENSE, 14),
        "statistics": ("--model statistics", 0),
    },
}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("pretrain", *ARMS, "table"))
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="*", help="default: all")
    parser.add_argument("--minutes", type=float, default=4.0)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    write_labels(given.data, given.work / "labels.csv")
    if given.what == "pretrain":
        pretrain(given.data, given.work)
    elif given.what == "table":
        for task in ARMS:
            table(task, given.work)
    else:
        for seed in given.seeds:
            for arm in given.arms or ARMS[given.what]:
                run(given.what, arm, seed, given.data, given.work, given.minutes)


def write_labels(data: Path, path: Path) -> None:
    """Write the labels of the findings arms: AP (also supine) against PA, and three findings."""
    with (data / "labels.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kept = ("image", "split", "patient_id", "view", "sex", "age")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*kept, *COLUMNS])
        for row in rows:
            ap = int(row["view"] != "PA")
            writer.writerow([*(row[k] for k in kept), ap, *(row[k] for k in COLUMNS[1:])])


def pretrain(data: Path, work: Path) -> None:
    """Train the masked autoencoder on the images of train and val."""
    crossband(
        "pretrain --recipe small --data.splits train val --precision bf16",
        *("--data.root", data, "--out", work / "mae"),
    )


def run(task: str, arm: str, seed: int, data: Path, work: Path, minutes: float) -> None:
    """Train one arm and score it on the test images."""
    out = work / task / f"{arm} {seed}".replace(" ", "_")
    if (out / "evaluation" / "metrics.json").is_file():
        return
    options, epochs = ARMS[task][arm]
    table = ["--data.table", (work / "labels.csv").resolve()] if task == "findings" else []
    length = f"--trainer.max_epochs {epochs} --trainer.max_minutes {minutes}" if epochs else ""
    crossband(
        f"train {options.format(work=work)} {length} --precision bf16 --seed {seed}",
        *("--data.root", data, "--out", out, *table),
    )
    scored = ("--weights", out / "best.safetensors", "--data.root", data, *table)
    crossband("evaluate --keep_ids", *scored)


def crossband(text: str, *words: object) -> None:
    """Run `crossband medical ...` on one thread."""
    command = [str(Path(sys.executable).parent / "crossband"), "medical", *text.split()]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *map(str, words)], check=True, env=environment)


def table(task: str, work: Path) -> None:
    """Print test scores of all runs of a task, and differences to the first arm."""
    found: dict[str, dict[str, np.ndarray]] = {}
    print(f"\n{task}")
    for arm in ARMS[task]:
        folders = sorted((work / task).glob(f"{arm.replace(' ', '_')}_[0-9]*"))
        runs = [f for f in folders if (f / "evaluation" / "metrics.json").is_file()]
        if not runs:
            continue
        read = _masks if task == "lungs" else _findings
        found[arm] = read(runs)
        minutes = [
            json.loads((f / "metrics.json").read_text())["protocol"]["minutes"] for f in runs
        ]
        values = ", ".join(f"{value:.4f}" for value in found[arm]["runs"])
        print(f"{arm:22} {np.mean(found[arm]['runs']):.4f}  ({values})  {np.mean(minutes):.1f} min")
    if not found:
        return
    first, *others = found
    groups = _patients(work)
    for arm in others:
        for name, statistic, a, b, label in _pairs(found[first], found[arm]):
            rows = found[first]["images"]
            difference = bootstrap(
                statistic, [a, b, label], [groups[row] for row in rows], count=2000
            )
            low, high = difference.low, difference.high
            print(f"{first} - {arm}, {name}: {difference.value:+.4f} [{low:+.4f}, {high:+.4f}]")


def _pairs(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> Iterable[tuple]:
    if "dice" in a:

        def mean(x: np.ndarray, y: np.ndarray, _: np.ndarray) -> float:
            return float((x - y).mean())

        yield "Dice", mean, a["dice"], b["dice"], a["dice"]
        return

    def difference(x: np.ndarray, y: np.ndarray, label: np.ndarray) -> float:
        return mean_auroc(x, label) - mean_auroc(y, label)

    def one(x: np.ndarray, y: np.ndarray, label: np.ndarray) -> float:
        return auroc(x, label) - auroc(y, label)

    yield "mean AUROC", difference, a["score"], b["score"], a["label"]
    for k, name in enumerate(COLUMNS):
        yield f"AUROC {name}", one, a["score"][:, k], b["score"][:, k], a["label"][:, k]


def _masks(runs: list[Path]) -> dict[str, np.ndarray]:
    rows = [json.loads((f / "evaluation" / "metrics.json").read_text())["rows"] for f in runs]
    dice = np.array([[row["dice"]["lung"] for row in one] for one in rows])
    images = np.array([row["image"] for row in rows[0]])
    return {"runs": dice.mean(1), "dice": dice.mean(0), "images": images}


def _findings(runs: list[Path]) -> dict[str, np.ndarray]:
    scores, labels, images, per = [], [], [], []
    for folder in runs:
        with (folder / "evaluation" / "predictions.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        images = [row["image"] for row in rows]
        scores.append([[float(row[f"probability {c}"]) for c in COLUMNS] for row in rows])
        labels = [[float(row[f"label {c}"]) for c in COLUMNS] for row in rows]
        per.append([auroc(np.array(scores[-1])[:, k], np.array(labels)[:, k]) for k in range(4)])
    label = np.array(labels)
    means = [mean_auroc(np.array(score), label) for score in scores]
    shown = ", ".join(f"{c} {v:.3f}" for c, v in zip(COLUMNS, np.mean(per, 0), strict=True))
    print(f"    {runs[0].name[:-2]}: {shown}")
    return {
        "runs": np.array(means),
        "score": np.mean(scores, 0),
        "label": label,
        "images": np.array(images),
    }


def _patients(work: Path) -> dict[str, str]:
    """Return the patient of each image."""
    with (work / "labels.csv").open(encoding="utf-8") as file:
        return {row["image"]: row["patient_id"] for row in csv.DictReader(file)}


if __name__ == "__main__":
    main()
