"""What a model would score if it only had to name regions, not to find them: recognition apart from localisation.

    python -m benchmarks.recognition runs/ablation/full_0 [--zero_shot] [--pictures 100]

Each true region, a connected part of the truth, is given the class whose score in it is highest in the mean. What "own
regions" lack of that is localisation's, and what "true regions" lack of 100 is recognition's: refinement, which moves
no name, can add the first alone.
"""

import argparse
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from scipy import ndimage

from dinov3seg_jax.data.held_out import open_evaluation
from dinov3seg_jax.errors import run_command
from dinov3seg_jax.evaluation.confusion import IGNORED, ConfusionMatrix, scores
from dinov3seg_jax.inference.load import open_model


def main() -> None:
    """Measure one run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--zero_shot", action="store_true", help="the towers alone")
    parser.add_argument("--pictures", type=int, default=100)
    options = parser.parse_args()
    opened = open_model(options.run, options.zero_shot)
    segmenter, dataset = opened.segmenter(opened.config), open_evaluation(opened.config.data)
    names = list(dataset.classes)
    counts = {"own regions": ConfusionMatrix(len(names)), "true regions": ConfusionMatrix(len(names))}
    for index in range(min(options.pictures, len(dataset.source))):
        example = dataset.source[index]
        result = segmenter.segment(example["image"], names, scores=True)
        truth = np.asarray(example["label"])
        counts["own regions"].add(result.labels, truth)
        counts["true regions"].add(named(np.asarray(result.scores), truth), truth)
    found = {title: scores(matrix.counts, dataset.seen) for title, matrix in counts.items()}
    shown = [score for score in ("miou", "seen_miou", "unseen_miou") if score in found["own regions"]]
    print(f"| | {' | '.join(shown)} |\n| --- |{' ---: |' * len(shown)}")
    for title, values in found.items():
        print(f"| {title} | {' | '.join(f'{values[score]:.1f}' for score in shown)} |")


def named(scores: Float[np.ndarray, "t h w"], truth: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Every connected part of the truth, whose class is forgotten, under the class of the highest mean score."""
    labels = np.zeros_like(truth)
    for value in np.unique(truth[truth != IGNORED]):
        parts, count = ndimage.label(truth == value)
        for part in range(1, count + 1):
            inside = parts == part
            labels[inside] = scores[:, inside].mean(axis=1).argmax()
    return labels


if __name__ == "__main__":
    run_command(main)
