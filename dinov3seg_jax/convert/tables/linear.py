"""Official linear segmentation heads (DINOv3's specification, section 12.1) -> the `linear/` part of `LinearProbe`."""

from dinov3seg_jax.convert.tables.rows import dense, norm
from dinov3seg_jax.convert.tables.rules import Row, drop, prefixed, rule
from dinov3seg_jax.convert.tables.transforms import pointwise

CHECKPOINT_PREFIX = r"segmentation_model\.1\."  # of the whole segmenter; the backbone, 0, is a file of its own

HEAD: tuple[Row, ...] = (
    *norm(r"batchnorm_layer", "norm"),
    rule(r"batchnorm_layer\.running_mean", "norm/mean"),
    rule(r"batchnorm_layer\.running_var", "norm/var"),
    drop(r"batchnorm_layer\.num_batches_tracked"),
    *dense("conv", "classifier", pointwise),
)

RULES = prefixed(HEAD, target="linear/")
