"""Scores of a low-light checkpoint beside its rivals, with intervals.

    python benchmarks/low_light_skill.py --weights runs/night/best.safetensors \
        --photos held_back/ --dark dicm/ lime/ --rivals zero_dce=Epoch99.pth sci=medium.pt

Two tables. Synthetic pairs: held-back photographs dimmed by the cameras that training does not use
(`phone`, `night`, `lamp`), several draws each; PSNR and SSIM. Real dark photographs: NIQE in both
variants. Intervals of the difference to the checkpoint are 95 % by bootstrap over photographs (of
pairs: all draws of a photograph together).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from crossband.apps.main import main

CAMERAS = ("phone", "night", "lamp")
CLASSICAL = ("input", "gamma", "auto_gamma", "clahe")


def crossband(words: list[str]) -> None:
    """Run a command without its own output."""
    with contextlib.redirect_stdout(io.StringIO()):
        code = main(words)
    if code:
        raise SystemExit(code)


def evaluate(given: argparse.Namespace, data: list[str], out: Path, metrics: list[str]) -> dict:
    """Run `crossband low-light evaluate` and return its results."""
    words = ["low-light", "evaluate", "--weights", given.weights, "--data.root", *data]
    words += ["--metrics", *metrics, "--rivals", *CLASSICAL, *given.rivals]
    words += ["--out", str(out), "--sheets", "99", "--quiet"]
    crossband(words)
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def table(scores: dict[str, dict[str, list[dict]]], metrics: list[str]) -> None:
    """Print means and the intervals of each method's difference to the first.

    Args:
        scores: Method -> photograph -> scores of its draws.
        metrics: Columns.
    """
    first = next(iter(scores))
    random = np.random.default_rng(0)
    print("| method | " + " | ".join(f"{m} | minus ours (95 %)" for m in metrics) + " |")
    print("|---" * (1 + 2 * len(metrics)) + "|")
    for method, photos in scores.items():
        cells = [method]
        for metric in metrics:
            means = np.array([np.mean([row[metric] for row in rows]) for rows in photos.values()])
            ours = np.array([np.mean([r[metric] for r in rows]) for rows in scores[first].values()])
            cells.append(f"{means.mean():.3f}")
            draws = random.integers(0, len(means), (2000, len(means)))
            low, high = np.percentile((means - ours)[draws].mean(1), [2.5, 97.5])
            cells.append("-" if method == first else f"{low:+.3f} to {high:+.3f}")
        print("| " + " | ".join(cells) + " |")
    print()


def run() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True)
    parser.add_argument("--photos", nargs="+", required=True, help="held-back photographs")
    parser.add_argument("--dark", nargs="+", required=True, help="real dark photographs")
    parser.add_argument("--rivals", nargs="*", default=[], help="zero_dce=FILE sci=FILE ...")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--out", help="keeps the reports with their pictures there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(given.out or scratch)
        whole: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
        for camera in CAMERAS:
            one: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
            for seed in range(given.draws):
                pairs = out / f"{camera}-{seed}"
                words = ["low-light", "data", "make", "--root", *given.photos, "--quiet"]
                words += ["--camera", camera, "--seed", str(seed), "--out", str(pairs)]
                crossband(words)
                found = evaluate(given, [str(pairs)], pairs / "scores", ["psnr", "ssim"])
                for row in found["images"]:
                    name = row.pop("image")
                    for method, values in row.items():
                        one[method][name].append(values)
                        whole[method][name].append(values)
            print(f"\n### Synthetic pairs, camera `{camera}`\n")
            table(one, ["psnr", "ssim"])
        print("\n### Synthetic pairs, all cameras\n")
        table(whole, ["psnr", "ssim"])
        found = evaluate(given, given.dark, out / "dark", ["niqe"])
        real: dict[str, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
        for row in found["images"]:
            name = row.pop("image")
            for method, values in row.items():
                real[method][name].append(values)
        print("\n### Real dark photographs\n")
        table(real, ["niqe_basicsr", "niqe_matlab"])


if __name__ == "__main__":
    run()
