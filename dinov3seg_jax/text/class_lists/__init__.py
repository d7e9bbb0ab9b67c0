"""Class lists as people write them: typed, pasted, or in a file of any common kind."""

from dinov3seg_jax.text.class_lists.given import Names, names_of, parse_names

__all__ = ["Names", "names_of", "parse_names"]
