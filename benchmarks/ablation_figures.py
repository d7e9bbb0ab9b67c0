"""The figures of docs/ablation.md, from what `benchmarks.ablation` trained.

    python -m benchmarks.ablation_figures [--runs runs/ablation] [--out docs/images] [--scenes 2 5 11]

`ablation_differences.svg`: what each variant loses against the whole method, paired by seed. `ablation_scenes.png`: the
same scenes with each part missing, by the models of seed 0.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.ablation import SCORES, ZERO_SHOT, Results, config_of, differences, half_interval, towers_of
from configs.ablation import VARIANTS
from dinov3seg_jax.data.held_out import open_evaluation
from dinov3seg_jax.errors import run_command
from dinov3seg_jax.evaluation.evaluate import open_to_score
from dinov3seg_jax.visualize.palettes import class_colors
from dinov3seg_jax.visualize.tint import overlay

SEED = 0  # of the models that draw the scenes
SHOWN = (ZERO_SHOT, "full", "no_late", "no_spatial", "no_classes", "no_early", "local_text", "no_windows")


def main() -> None:
    """Draw both figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--scenes", type=int, nargs="+", default=(2, 5, 11), help="numbers of scenes of data.eval")
    options = parser.parse_args()
    mpl.rcParams |= {"svg.hashsalt": "0", "font.size": 9}  # the same file whenever it is drawn
    results = json.loads((options.runs / "results.json").read_text(encoding="utf-8"))
    drawn = {
        "ablation_differences.svg": differences_figure(results),
        "ablation_scenes.png": scenes_figure(options.runs, options.scenes, [name for name in SHOWN if name in results]),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        figure.savefig(
            options.out / name, dpi=80, bbox_inches="tight", metadata={"Date": None} if ".svg" in name else {}
        )
        print(f"{options.out / name} is written")


def differences_figure(results: Results) -> Figure:
    """A panel for each score: every seed's difference to `full` as a dot, their mean and its interval as a bar."""
    variants = [name for name in (*VARIANTS, ZERO_SHOT) if name in results and name != "full"]
    figure, panels = plt.subplots(1, len(SCORES), figsize=(9, 0.32 * len(variants) + 0.9), sharey=True)
    for panel, (score, title) in zip(panels, SCORES.items(), strict=True):
        for row, variant in enumerate(variants):
            pairs = differences(results, variant, score)
            panel.plot(pairs, [row] * len(pairs), "o", color="tab:blue", markersize=3, alpha=0.6)
            half = half_interval(pairs) if len(pairs) > 1 else 0
            panel.errorbar(statistics.mean(pairs), row, xerr=half, fmt="|", color="black", capsize=3)
        panel.axvline(0, color="gray", linewidth=0.8)
        panel.set_title(f"{title}, points to full")
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(variants)), variants)
    panels[0].invert_yaxis()
    return figure


def scenes_figure(runs: Path, scenes: Sequence[int], variants: Sequence[str]) -> Figure:
    """A row for each scene: picture, truth, and what each variant says."""
    config = config_of("full", SEED, runs)
    dataset = open_evaluation(config.data)
    examples = [dataset.source[number] for number in scenes]
    colors = class_colors(dataset.classes)
    images = [example["image"] for example in examples]
    labels = {"truth": [example["label"] for example in examples]}
    labels |= {variant: labels_by(variant, runs, images, dataset.classes) for variant in variants}
    columns = {"picture": images}
    for title, maps in labels.items():
        columns[title] = [overlay(image, map_, colors, 1, "off") for image, map_ in zip(images, maps, strict=True)]
    figure, panels = plt.subplots(
        len(scenes), len(columns), figsize=(1.5 * len(columns), 1.6 * len(scenes)), squeeze=False
    )
    for place, (title, pictures) in enumerate(columns.items()):
        panels[0, place].set_title(title)
        for panel, picture in zip(panels[:, place], pictures, strict=True):
            panel.imshow(picture, interpolation="nearest")
            panel.axis("off")
    figure.subplots_adjust(wspace=0.03, hspace=0.03)
    return figure


def labels_by(variant: str, runs: Path, images: Sequence[np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
    """Of each picture, what a variant's model says."""
    config = config_of("full" if variant == ZERO_SHOT else variant, SEED, runs)
    run = towers_of(config).workdir if variant == ZERO_SHOT else config.workdir
    segmenter = open_to_score(config, run, variant == ZERO_SHOT).segmenter
    return [segmenter.segment(image, list(names)).labels for image in images]


if __name__ == "__main__":
    run_command(main)
