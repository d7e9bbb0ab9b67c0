"""How much a run sees of its data set, said before it begins."""

from dinov3seg_jax.config import TrainConfig

SMALLEST = 0.001  # part of an epoch that is worth a word


def extent(train: TrainConfig, pictures: int | None) -> str:
    """As in "80,000 steps of 4 crops, 2.71 epochs of 118,287 pictures".

    Args:
        train: options of the run.
        pictures: of its data set; None where that is not known. Of an endless one no epoch is ever reached.
    """
    steps, crops = f"{train.steps:,} steps of {train.batch_size:,} crops", train.steps * train.batch_size
    if not pictures or crops / pictures < SMALLEST:
        return f"{steps}, {crops:,} in all"
    return f"{steps}, {crops / pictures:,.3g} epochs of {pictures:,} pictures"
