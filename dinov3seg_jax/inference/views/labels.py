"""From class scores on a coarse grid to labels at a picture's own size, in memory for one class and a piece of it."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from dinov3seg_jax.inference.device.sharing import on_own_pictures, shared_out
from dinov3seg_jax.inference.views.linear_resize import Taps, taps

PIECE = 256  # side of the squares that are labelled at once: pictures of all sizes share their program
SHORTEST = 64

Labelled = tuple[Int[np.ndarray, "height width"], Float[np.ndarray, "height width"]]  # classes and their scores


class Found(NamedTuple):
    """What a model finds in one picture, at its own size."""

    labels: Int[np.ndarray, "height width"]  # the best class of each pixel
    confidence: Float[np.ndarray, "height width"]  # its score, in [0, 1]
    scores: Float[np.ndarray, "t height width"] | None = None  # of every class, where they were asked for


def best_of(found: Sequence[Found]) -> Found:
    """One picture from several, each of which has the best of other classes: as if all had been compared at once.

    Args:
        found: their labels are indices of one list; of equal scores the lower index counts. A class that is not among
            the scores of one has 0 there.
    """
    labels, confidence, scores = found[0]
    for other in found[1:]:
        lower = (other.confidence == confidence) & (other.labels < labels)
        better = (other.confidence > confidence) | lower
        labels = np.where(better, other.labels, labels)
        confidence = np.maximum(confidence, other.confidence)
        if scores is not None and other.scores is not None:
            scores = np.maximum(scores, other.scores)
    return Found(labels, confidence, scores)


def label_pixels(
    scores: Float[Array, "t h w"], class_mask: Bool[Array, " t"], height: int, width: int
) -> tuple[Int[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    """Resize the scores bilinearly (half-pixel centres, no antialiasing) and take the best class of each pixel.

    Args:
        scores: in [0, 1], on the device.
        class_mask: False for classes that cannot be chosen.
        height, width: of the picture.

    Returns:
        The classes' indices, int32, the first of equal ones; and their scores, float32 in [0, 1].
    """
    best = BestClass([(height, width)])
    best.update(scores[None], class_mask)
    (result,) = best.results()
    return result


def resize_scores(
    scores: Float[np.ndarray | Array, "t h w"], height: int, width: int
) -> Float[np.ndarray, "t height width"]:
    """All scores as `label_pixels` compares them, on the host."""
    rows, columns = taps(scores.shape[1], height), taps(scores.shape[2], width)
    found = np.empty((len(scores), height, width), np.float32)
    for grid, resized in zip(np.asarray(scores), found, strict=True):
        wide = _between(grid[:, columns.first], grid[:, columns.second], columns.weight)
        resized[:] = _between(wide[rows.first], wide[rows.second], rows.weight[:, None])
    return found


class BestClass:
    """The best class of each pixel of some pictures so far, while the scores of a list come a few classes at a time.

    The pictures are labelled side by side in squares of `PIECE` pixels, so they should be few or alike. Whatever their
    sizes, they share one compiled program.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], mesh: Mesh | None = None):
        """`sizes` are the pictures' heights and widths; each device of `mesh` has equally many of them."""
        self.sizes = sizes
        self._mesh = mesh
        height, width = (max(lengths) for lengths in zip(*sizes, strict=True))
        self._corners = [(top, left) for top in range(0, height, PIECE) for left in range(0, width, PIECE)]
        sharding = None if mesh is None else shared_out(mesh)
        self._best = [jax.device_put(no_class(len(sizes), PIECE), sharding) for _ in self._corners]
        self._taps: list[tuple[Taps, Taps]] = []  # rows and columns of each piece

    def update(
        self, scores: Float[Array, "b2 t h w"], class_mask: Bool[Array, " t"], first: int = 0, place: int = 0
    ) -> None:
        """Take in some of the classes, always on a grid of the same size; see `label_pixels`.

        Of equal scores that of the earlier call, then of the lower index counts.

        Args:
            scores: of these pictures, or of more, of which they are those from `place` on in the share of each device.
            class_mask: False for classes that cannot be chosen.
            first: index of the first of these classes.
            place: see `scores`.
        """
        if not self._taps:
            self._taps = self._place(*scores.shape[2:])
        for piece, (rows, columns) in enumerate(self._taps):
            so_far = self._best[piece]
            self._best[piece] = label_pieces(
                so_far, scores, class_mask, np.int32(first), np.int32(place), rows, columns, mesh=self._mesh
            )

    def results(self) -> list[Labelled]:
        """The indices and scores of the best classes in each picture; see `label_pixels`."""
        found = [(np.empty(size, np.int32), np.empty(size, np.float32)) for size in self.sizes]
        for (top, left), piece in zip(self._corners, self._best, strict=True):
            for maps, values in zip(zip(*found, strict=True), jax.device_get(piece), strict=True):
                for whole, value in zip(maps, values, strict=True):
                    part = whole[top : top + PIECE, left : left + PIECE]
                    part[:] = value[: part.shape[0], : part.shape[1]]
        return found

    def _place(self, h: int, w: int) -> list[tuple[Taps, Taps]]:
        down, across = [taps(h, height) for height, _ in self.sizes], [taps(w, width) for _, width in self.sizes]
        return [(_together(down, top), _together(across, left)) for top, left in self._corners]


def _together(axes: list[Taps], start: int) -> Taps:
    return Taps(*map(np.stack, zip(*(axis.part(start, PIECE) for axis in axes), strict=True)))


def no_class(pieces: int, side: int) -> tuple[Int[np.ndarray, "b side side"], Float[np.ndarray, "b side side"]]:
    """What `label_pieces` starts from: every score beats it."""
    shape = pieces, side, side
    return np.zeros(shape, np.int32), np.full(shape, -1, np.float32)  # NumPy's, which compiles nothing


def padded(length: int) -> int:
    """The next of 64, 96, 128, 192, 256, 384, ...: at most half more."""
    power = max(SHORTEST, 1 << (length - 1).bit_length())
    return power * 3 // 4 if power > SHORTEST and length <= power * 3 // 4 else power


@functools.partial(jax.jit, static_argnames="mesh")
def label_pieces(
    best: tuple[Int[Array, "b height width"], Float[Array, "b height width"]],
    scores: Float[Array, "b2 t h w"],
    class_mask: Bool[Array, " t"],
    first: Int[Array, ""],
    place: Int[Array, ""],
    rows: Taps,
    columns: Taps,
    *,
    mesh: Mesh | None = None,
) -> tuple[Int[Array, "b height width"], Float[Array, "b height width"]]:
    """The best class and score of every pixel of some pieces, these classes and those before them considered.

    Args:
        best: of the classes before; see `no_class`.
        scores: around each piece, and perhaps other ones.
        class_mask: False for classes that cannot be chosen.
        first: index of the first of these classes.
        place: of the first piece's scores, in the share of each device.
        rows, columns: of each piece's pixels among the scores: [b, height] and [b, width].
        mesh: of devices that share the pieces out.
    """
    run = on_own_pictures(mesh, common=("class_mask", "first", "place"))(_label_own)
    return run(best, scores, class_mask, first, place, rows, columns)


def _label_own(
    best: tuple[Int[Array, "b height width"], Float[Array, "b height width"]],
    scores: Float[Array, "b2 t h w"],
    class_mask: Bool[Array, " t"],
    first: Int[Array, ""],
    place: Int[Array, ""],
    rows: Taps,
    columns: Taps,
) -> tuple[Int[Array, "b height width"], Float[Array, "b height width"]]:
    def label(best: tuple[Array, Array], scores: Array, rows: Taps, columns: Taps) -> tuple[Array, Array]:
        def keep_best(best: tuple[Array, Array], one: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
            label, score = best
            index, grid, allowed = one
            wide = _between(grid[:, columns.first], grid[:, columns.second], columns.weight)
            resized = _between(wide[rows.first], wide[rows.second], rows.weight[:, None])
            better = allowed & (resized > score)
            return (jnp.where(better, index, label), jnp.where(better, resized, score)), None

        classes = first + jnp.arange(scores.shape[0], dtype=jnp.int32)
        return jax.lax.scan(keep_best, best, (classes, scores, class_mask))[0]

    own = jax.lax.dynamic_slice_in_dim(scores, place, len(best[0]))
    return jax.vmap(label)(best, own, rows, columns)


def _between(low: Any, high: Any, weight: np.ndarray | Array) -> Any:
    return low + (high - low) * weight
