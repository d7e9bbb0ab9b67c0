"""Class lists as people write them: typed, pasted, or in a file of any common kind."""

from dinov3seg_jax.text.class_lists.asked import ClassList, Options
from dinov3seg_jax.text.class_lists.given import Names, names_of, parse_names
from dinov3seg_jax.text.class_lists.named import NamedClass

__all__ = ["ClassList", "NamedClass", "Names", "Options", "names_of", "parse_names"]
