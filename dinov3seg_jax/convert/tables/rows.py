"""Rows that several tables share."""

from dinov3seg_jax.convert.tables.rules import Rule, rule
from dinov3seg_jax.convert.tables.transforms import Transform, linear


def dense(source: str, target: str, weight: Transform = linear) -> tuple[Rule, Rule]:
    """Weight and bias of a layer; `source` is a regex."""
    return rule(rf"{source}\.weight", f"{target}/kernel", weight), rule(rf"{source}\.bias", f"{target}/bias")


def norm(source: str, target: str) -> tuple[Rule, Rule]:
    """Scale and shift of a norm; `source` is a regex."""
    return rule(rf"{source}\.weight", f"{target}/scale"), rule(rf"{source}\.bias", f"{target}/bias")
