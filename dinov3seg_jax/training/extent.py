"""How much a run sees of its data set, said before it begins."""

from dinov3seg_jax.config import TrainConfig


def extent(train: TrainConfig, pictures: int | None) -> str:
    """As in "80,000 steps of 4 crops, 2.71 epochs of 118,287 pictures"; `pictures` None where it is not known."""
    steps, crops = f"{train.steps:,} steps of {train.batch_size:,} crops", train.steps * train.batch_size
    if not pictures:
        return f"{steps}, {crops:,} in all"
    return f"{steps}, {crops / pictures:,.3g} epochs of {pictures:,} pictures"
