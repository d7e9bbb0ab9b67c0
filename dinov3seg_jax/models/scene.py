"""What one part of the model hands to the next, as trees of arrays, which programs can take and return."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float

REJECTED_LOGIT = -100.0  # of a class that a view does not refine


class PriorMaps(NamedTuple):
    """What SAM, or the vision tower in its place, says of an image, on its own grid."""

    final: Float[Array, "b h w d1"]
    early: Float[Array, "b h w d2"]  # after a third of the depth
    middle: Float[Array, "b h w d2"]  # after two thirds


class ImageFeatures(NamedTuple):
    """What is known of an image before any text is seen."""

    patches: Float[Array, "b h w d"]  # text-aligned
    prior: PriorMaps | None


class GuidedHalf(NamedTuple):
    """The part of one window attention's queries and keys that comes from the guidance: the same for every class."""

    query: Float[Array, "b 1 h w d"]
    key: Float[Array, "b 1 h w d"]


class ClassSums(NamedTuple):
    """All that linear attention knows of the class list: sums over its classes, per position and head, float32."""

    products: Float[Array, "b h w n d d"]  # of keys and values
    keys: Float[Array, "b h w n d"]


Sums = tuple[ClassSums, ...]  # of the first class blocks, over the whole list


class Scene(NamedTuple):
    """What of an image depends on no class, ready for the head."""

    refined: Float[Array, "b h w d"]  # patches after the early refinement
    halves: tuple[tuple[GuidedHalf, GuidedHalf] | None, ...]  # for each spatial block
    guided: tuple[Float[Array, "b h2 w2 o1"], Float[Array, "b h4 w4 o2"]] | None  # for the decoder


class Chunk(NamedTuple):
    """Some of the classes; every chunk of a list has the same length, so that they share a program."""

    text: Float[Array, "b t d2"]
    class_mask: Bool[Array, "b t"]
    padding: Float[Array, " b"] | None = None  # learned entries that the sums of this chunk count too (CAT-Seg's)
