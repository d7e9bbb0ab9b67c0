"""Pictures to try, painted here: the quick start's model knows such scenes and nothing else."""

from pathlib import Path

import numpy as np
from PIL import Image

from dinov3seg_jax.app.models import Models
from dinov3seg_jax.data.painted import CLASS_NAMES, PaintedScenes
from dinov3seg_jax.errors import UserError

COUNT, SIDE, SEED = 3, 480, 3
DISTRACTORS = ("red box", "blue ring", "water", "sand")


def painted_examples(models: Models, folder: Path) -> list[tuple[str, str]]:
    """Paths of pictures, each with names of what is in it and of what is not; none if no model knows such scenes."""
    if not any(_knows_painted(models, name) for name in models.names):
        return []
    folder.mkdir()
    examples = []
    scenes = PaintedScenes("eval", COUNT, SIDE, SEED)
    for number in range(COUNT):
        scene, path = scenes[number], folder / f"painted_scene_{number + 1}.png"
        Image.fromarray(scene["image"]).save(path)
        found = [CLASS_NAMES[index] for index in np.unique(scene["label"])]
        others = [name for name in DISTRACTORS if name not in found]
        examples.append((str(path), ", ".join(found + others[:2])))
    return examples


def _knows_painted(models: Models, name: str) -> bool:
    try:
        return models.folder(name).config.data.train.name == "painted_scenes"
    except UserError:  # which is said when the model is chosen
        return False
