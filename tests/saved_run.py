"""A run on disk of the small model, for tests whose processes load it themselves."""

import jax

from dinov3seg_jax.config import Config, InferenceConfig
from dinov3seg_jax.models.graph import initialize
from dinov3seg_jax.store.run import write_config
from dinov3seg_jax.training.checkpoint import Checkpoints
from tests.tiny import MODEL

CONFIG = Config(model=MODEL, inference=InferenceConfig(image_size=48, window=32, stride=16))


def save_run(folder, config=CONFIG):
    """Write one step of random parameters; returns the folder."""
    folder.mkdir(exist_ok=True)
    write_config(folder, config)
    checkpoints = Checkpoints(folder, 1)
    drawn = initialize(MODEL, jax.random.key(0))
    drawn["decoder/head/kernel"] *= 20  # else all classes are nearly equal, and rounding decides
    checkpoints.save(1, drawn, {"count": jax.numpy.zeros(1)}, {"train_seconds": 1.0})
    checkpoints.close()
    return folder
