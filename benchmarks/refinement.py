"""What each stage of a run's model knows of a patch: the towers, early refinement, and the whole head.

    python -m benchmarks.refinement runs/ablation/full_0 [--pictures 100] [--crop 96]

On crops of `data.eval`'s scenes, one view each, with all names. A patch counts as "inside" where one class fills it,
else as "border"; its truth is the class of most of its pixels. For each stage the table has how often the best class is
the true one, and by how much the true class's cosine with its own text exceeds the best other one: what refinement
moves toward the truth, it raises. "confusable" counts the patches whose true class and the towers' best other class
share a word ("red ball", "red box"), which a class block is there to tell apart.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dinov3seg_jax.data.held_out import open_evaluation
from dinov3seg_jax.errors import run_command
from dinov3seg_jax.inference.load import open_model
from dinov3seg_jax.models.dinov3seg import SegmentationModel
from dinov3seg_jax.models.functions import resize_linear
from dinov3seg_jax.models.graph import bind, build
from dinov3seg_jax.text.prompts import training_prompts

STAGES = ("towers", "early refinement", "whole head")


def main() -> None:
    """Measure one run, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--crop", type=int, default=96, help="side in pixels, from each picture's middle")
    options = parser.parse_args()
    opened = open_model(options.run)
    config, dataset = opened.config, open_evaluation(opened.config.data)
    graph, _ = build(config.model)
    patch = config.model.vision.patch_size

    @jax.jit
    def stages(parameters: dict[str, Array], image: Array, tokens: Array) -> tuple[Array, ...]:
        return scores_of(bind(graph, parameters), image[None] / 255, tokens)

    tokens = jnp.asarray(training_prompts(dataset.classes, config))
    found: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    for index in range(min(options.pictures, len(dataset.source))):
        example = dataset.source[index]
        top, left = ((side - options.crop) // 2 for side in example["label"].shape)
        image, label = (
            np.asarray(example[name])[top : top + options.crop, left : left + options.crop]
            for name in ("image", "label")
        )
        truth, inside = truth_of(label, patch, len(dataset.classes))
        of_stage = jax.device_get(stages(opened.parameters, image.astype(np.float32), tokens))
        alike = confusable(dataset.classes, of_stage[0], truth)
        for stage, scores in zip(STAGES, of_stage, strict=True):
            margin = margins(scores, truth)
            for kind, chosen in (("inside", inside), ("border", ~inside), ("confusable", alike)):
                found[stage, kind].append(margin[chosen & (truth >= 0)])
    print("| stage | patches | right, % | margin |\n| --- | --- | ---: | ---: |")
    for (stage, kind), parts in found.items():
        margin = np.concatenate(parts)
        print(f"| {stage} | {kind}, {len(margin):,} | {100 * (margin > 0).mean():.1f} | {margin.mean():+.3f} |")


def scores_of(
    model: SegmentationModel, image: Float[Array, "1 h w 3"], tokens: Int[Array, "t length"]
) -> tuple[Float[Array, "t gh gw"], ...]:
    """Of each class at each patch: the cosine of the towers' patches, of the refined ones, and the head's logit."""
    text, features = model.encode_text(tokens), model.encode_image(image)
    grid = features.patches.shape[1:3]
    logits = jnp.moveaxis(model.segment(image, features, text[None]).logits, 1, -1)
    local = [
        jnp.moveaxis(resize_linear(jnp.moveaxis(cosines, 1, -1), *grid), -1, 1)
        for cosines in (
            model.correlate(patches, text[None])[..., 0]  # the first channel is the local half's, where both are in use
            for patches in (features.patches, model.refine_early(image, features.patches))
        )
    ]
    return local[0][0], local[1][0], jnp.moveaxis(resize_linear(logits, *grid), -1, 1)[0]


def truth_of(label: Int[np.ndarray, "h w"], patch: int, classes: int) -> tuple[Int[np.ndarray, "gh gw"], np.ndarray]:
    """The class of most pixels of each patch, -1 where none has one; and whether it fills the patch."""
    gh, gw = (side // patch for side in label.shape)
    cells = label.reshape(gh, patch, gw, patch).swapaxes(1, 2).reshape(gh * gw, -1)
    counts = np.stack([np.bincount(cell[cell >= 0], minlength=classes) for cell in cells])
    truth = np.where(counts.any(axis=1), counts.argmax(axis=1), -1)
    return truth.reshape(gh, gw), (counts.max(axis=1) == patch * patch).reshape(gh, gw)


def margins(scores: Float[np.ndarray, "t gh gw"], truth: Int[np.ndarray, "gh gw"]) -> Float[np.ndarray, "gh gw"]:
    """By how much the true class's score exceeds the best other one; above 0 where it wins."""
    own, others = _parted(scores, truth)
    return own - others.max(axis=0)


def confusable(names: tuple[str, ...], scores: Float[np.ndarray, "t gh gw"], truth: np.ndarray) -> np.ndarray:
    """Where the best other class shares a word with the true one."""
    words = [set(name.split()) for name in names]
    shared = np.array([[bool(one & other) for other in words] for one in words])
    _, others = _parted(scores, truth)
    return shared[np.maximum(truth, 0), others.argmax(axis=0)]


def _parted(scores: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    is_own = np.arange(len(scores))[:, None, None] == truth
    return np.where(is_own, scores, 0).sum(axis=0), np.where(is_own, -np.inf, scores)


if __name__ == "__main__":
    run_command(main)
