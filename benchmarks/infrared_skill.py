"""Small targets in infrared images: UNIP distilled, from scratch, and a U-Net, at equal time.

    python benchmarks/infrared_skill.py --data sirst_v2 --out skill/ --arms scratch:0 unet:0 ...
    python benchmarks/infrared_skill.py --data sirst_v2 --out skill/ --table

Arms: `scratch`, `unip` (from OUT/student-unip, distilled from a MAE), `random` (from
OUT/student-random, distilled from random weights), `detail` (as `unip`, by the recipe `sirst`: with
a convolutional branch and images enlarged twice instead of four times), `detail-scratch`, and
`unet`, each with a seed. Every arm trains on one core by its recipe and is scored on the test
split; arms that are done are not run again. Times are of training, as the run wrote them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

EPOCHS = {"unet": 34}  # the others: 45; about the same minutes
_STUDENT = {"unip": "student-unip", "random": "student-random", "detail": "student-unip"}
_RECIPES = {"unet": "sirst_unet", "detail": "sirst", "detail-scratch": "sirst"}
_MORE = ("--precision", "bf16", "--trainer.select", "last", "--trainer.check_val_every_n_epoch")


def command(arm: str, seed: int, data: str, out: Path) -> list[str]:
    """Return the command line of one arm."""
    recipe = _RECIPES.get(arm, "sirst_plain")
    words = ["infrared", "train", "--recipe", recipe, "--data.root", data, "--seed", str(seed)]
    words += ["--trainer.max_epochs", str(EPOCHS.get(arm, 45)), *_MORE, "1000"]
    if arm != "unet":
        words += ["--model", "unip_tiny"]
    if arm in _STUDENT:
        words += ["--weights", str(out.parent / _STUDENT[arm] / "best.safetensors")]
    return [*words, "--out", str(out), "--quiet"]


def run(arm: str, seed: int, data: str, out: Path, core: int) -> None:
    """Train and score one arm on one core."""
    folder = out / f"{arm}-{seed}"
    if (folder / "evaluation/metrics.json").is_file():
        return
    program = [sys.executable, "-m", "crossband.apps.main"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    evaluate = ["infrared", "evaluate", "--weights", str(folder / "best.safetensors"), "--quiet"]
    evaluate += ["--precision", "bf16"]
    for words in (command(arm, seed, data, folder), [*evaluate, "--data.root", data]):
        subprocess.run(
            [*program, *words],
            env=environment,
            check=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )


def table(out: Path) -> None:
    """Print a row per arm: scores on the test split by seed, and the minutes."""
    rows: dict[str, list[dict[str, float]]] = {}
    for path in sorted(out.glob("*-*/evaluation/metrics.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        training = json.loads((path.parents[1] / "metrics.json").read_text(encoding="utf-8"))
        small = found["small_targets"]
        rows.setdefault(path.parents[1].name.rpartition("-")[0], []).append(
            {
                "IoU": 100 * found["classes"]["target"]["iou"],
                "mIoU": 100 * found["mIoU"],
                "nIoU": 100 * small["nIoU"],
                "Pd": 100 * small["Pd"],
                "Fa per million": 1e6 * small["Fa"],
                "minutes": training["protocol"]["minutes"],
            }
        )
    for arm, seeds in rows.items():
        cells = []
        for name in seeds[0]:
            values = [row[name] for row in seeds]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{name} {statistics.mean(values):.1f}{spread}")
        print(f"{arm} ({len(seeds)}): " + ", ".join(cells))


def main() -> None:
    """Run the arms that are named, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="folder of sirst_v2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="*", default=[], help="ARM:SEED")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    for word in options.arms:
        arm, _, seed = word.partition(":")
        run(arm, int(seed or 0), options.data, options.out, options.core)
    if options.table:
        table(options.out)


if __name__ == "__main__":
    main()
