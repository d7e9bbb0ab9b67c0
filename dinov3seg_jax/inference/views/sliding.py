"""What overlapping windows say of each pixel, averaged and labelled a strip of rows at a time.

The field's sliding inference keeps every class at full size. Here only the windows' coarse maps are kept; a strip is
resized, averaged and reduced to its best class before the next one begins, so that memory depends neither on the
picture's height nor, but for the coarse maps, on the number of classes.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from dinov3seg_jax.inference.views.labels import Found, padded
from dinov3seg_jax.inference.views.linear_resize import taps
from dinov3seg_jax.models.functions import half_pixel_weights

WINDOWS_AT_ONCE = 12  # more run one batch after the other, the last one filled up
STRIP_BYTES = 2**27  # of every class on the rows that one strip is made of
LONGEST_STRIP, SHORTEST_STRIP = 256, 4
HIGHEST = jax.lax.Precision.HIGHEST


class Views(NamedTuple):
    """Windows of one picture and what a model says of them."""

    maps: Float[Array, "n t gh gw"]  # scores on each window's own grid
    corners: Int[np.ndarray, "n 2"]  # of `windows.plan_windows`
    window: tuple[int, int]  # height and width of a window in pixels
    size: tuple[int, int]  # of the picture they were cut from


def cut(
    pixels: Shaped[np.ndarray, "h w 3"], corners: Int[np.ndarray, "n 2"], window: tuple[int, int]
) -> Shaped[np.ndarray, "n wh ww 3"]:
    """Windows on the host, where every size of picture is cut without a program of its own."""
    return np.stack([pixels[row : row + window[0], column : column + window[1]] for row, column in corners])


def batches(windows: Array) -> list[Array]:
    """All windows as one batch, or as several full ones of `WINDOWS_AT_ONCE`: the last one's rest is to be dropped."""
    n = len(windows)
    if n <= WINDOWS_AT_ONCE:
        return [windows]
    filled = jnp.pad(windows, ((0, -n % WINDOWS_AT_ONCE), (0, 0), (0, 0), (0, 0)))
    return jnp.split(filled, len(filled) // WINDOWS_AT_ONCE)


def label_views(
    views: Views, class_mask: Bool[Array, " t"], height: int, width: int, *, softmax: str
) -> tuple[Int[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    """Average the windows, resize bilinearly to the picture's own size, and take each pixel's best class.

    Args:
        views: each map is resized bilinearly to its window first.
        class_mask: False for classes that cannot be chosen.
        height, width: of the result.
        softmax: over classes, "windows" before the average (dinov3.txt's notebook), or "pixels" in the end (DINOv3's
            linear evaluation).

    Returns:
        The classes' indices, int32, the first of equal ones; and their probabilities, float32 in [0, 1].
    """
    labels, confidence = np.empty((height, width), np.int32), np.empty((height, width), np.float32)
    for wanted, (best, probability) in _strips(views, class_mask, height, width, softmax, every=False):
        labels[wanted], confidence[wanted] = best, probability
    return labels, confidence


def score_views(
    views: Views, class_mask: Bool[Array, " t"], height: int, width: int, *, softmax: str
) -> Float[np.ndarray, "t height width"]:
    """The probabilities of all classes that `label_views` compares; of those that cannot be chosen, 0."""
    scores = np.empty((views.maps.shape[1], height, width), np.float32)
    for wanted, (probabilities,) in _strips(views, class_mask, height, width, softmax, every=True):
        scores[:, wanted] = probabilities
    return scores


def find_in_views(
    views: Views, class_mask: Bool[Array, " t"], height: int, width: int, *, softmax: str, scores: bool
) -> Found:
    """Both of them, the second where `scores` asks for it."""
    best = label_views(views, class_mask, height, width, softmax=softmax)
    every = score_views(views, class_mask, height, width, softmax=softmax) if scores else None
    return Found(*best, every)


def _strips(
    views: Views, class_mask: Bool[Array, " t"], height: int, width: int, softmax: str, every: bool
) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """Rows of the result, and what `_label_strip` says of them."""
    columns_seen = padded(views.size[1])
    strip, most = strip_rows(views.maps.shape[1], columns_seen, views.size[0], height)
    above, below, down = taps(views.size[0], height)
    columns = [np.pad(taps, (0, padded(width) - width)) for taps in taps(views.size[1], width)]
    for top in range(0, height, strip):
        wanted = slice(top, min(top + strip, height))
        needed = np.unique(np.concatenate([above[wanted], below[wanted]]))
        count = wanted.stop - top
        weights = np.zeros((strip, most), np.float32)
        np.add.at(weights, (np.arange(count), np.searchsorted(needed, above[wanted])), 1 - down[wanted])
        np.add.at(weights, (np.arange(count), np.searchsorted(needed, below[wanted])), down[wanted])
        rows = np.pad(needed, (0, most - len(needed)), mode="edge")
        strip_of = _label_strip(
            views.maps, class_mask, views.corners, rows, weights, columns, views.window, columns_seen, softmax, every
        )
        yield wanted, [values[..., :count, :width] for values in jax.device_get(strip_of)]


def strip_rows(classes: int, width: int, inputs: int, outputs: int) -> tuple[int, int]:
    """Rows of a strip of the result, a power of two; and a bound on the rows of the picture it is made of."""
    fitting = max(STRIP_BYTES // (classes * width * 4 * 2), 1)
    strip = min(max(2 ** (fitting.bit_length() - 1), SHORTEST_STRIP), LONGEST_STRIP)
    return strip, min(2 * strip, padded(strip * inputs // outputs + 3))


def average_rows(
    maps: Float[Array, "n t gh gw"],
    class_mask: Bool[Array, " t"],
    corners: Int[Array, "n 2"],
    rows: Int[Array, " r"],
    window: tuple[int, int],
    width: int,
    softmax: str,
) -> Float[Array, "t r width"]:
    """The windows' mean at some rows of the picture; see `label_views`. Columns beyond all windows are 0."""
    _, t, gh, gw = maps.shape
    down = half_pixel_weights(gh, window[0]).astype(np.float32)
    across = half_pixel_weights(gw, window[1]).astype(np.float32)

    def add(total: Array, view: tuple[Array, Array]) -> tuple[Array, None]:
        grid, corner = view
        inside = (rows >= corner[0]) & (rows < corner[0] + window[0])

        def lay() -> Array:
            taps = jnp.asarray(down)[jnp.clip(rows - corner[0], 0, window[0] - 1)]
            scores = jnp.einsum("rh,thw->trw", taps, grid, precision=HIGHEST)
            scores = jnp.einsum("trw,cw->trc", scores, across, precision=HIGHEST)
            if softmax == "windows":
                scores = jax.nn.softmax(jnp.where(class_mask[:, None, None], scores, -jnp.inf), axis=0)
            scores = jnp.where(inside[:, None], scores, 0)
            start = (0, 0, corner[1])
            below = jax.lax.dynamic_slice(total, start, scores.shape)
            return jax.lax.dynamic_update_slice(total, below + scores, start)

        return jax.lax.cond(inside.any(), lay, lambda: total), None

    nothing = jnp.zeros((t, len(rows), width), jnp.float32)
    total, _ = jax.lax.scan(add, nothing, (maps.astype(jnp.float32), corners))
    high, wide = _within(rows, corners[:, 0], window[0]), _within(jnp.arange(width), corners[:, 1], window[1])
    return total / jnp.maximum(high.T @ wide, 1)


def _within(places: Int[Array, " p"], starts: Int[Array, " n"], length: int) -> Float[Array, "n p"]:
    """1 where a window of that start and length holds a row or a column, else 0."""
    return ((places >= starts[:, None]) & (places < starts[:, None] + length)).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("window", "width", "softmax", "every"))
def _label_strip(
    maps: Float[Array, "n t gh gw"],
    class_mask: Bool[Array, " t"],
    corners: Int[Array, "n 2"],
    rows: Int[Array, " r"],
    weights: Float[Array, "strip r"],
    columns: list[Array],
    window: tuple[int, int],
    width: int,
    softmax: str,
    every: bool,
) -> tuple[Array, ...]:
    """Labels and probabilities [strip, outputs]; or, if `every`, the probabilities of all classes alone."""
    left, right, across = columns

    def keep_best(best: tuple[Array, Array, Array], one: tuple[Array, Array, Array]) -> tuple[tuple, Array | None]:
        label, score, total = best
        index, band, allowed = one
        at_rows = jnp.matmul(weights, band, precision=HIGHEST)
        resized = jnp.where(allowed, at_rows[:, left] * (1 - across) + at_rows[:, right] * across, -jnp.inf)
        if softmax == "pixels":
            total = jnp.logaddexp(total, resized)
        better = resized > score
        kept = resized if every else None
        return (jnp.where(better, index, label), jnp.where(better, resized, score), total), kept

    averaged = average_rows(maps, class_mask, corners, rows, window, width, softmax)
    shape = len(weights), len(left)
    nothing = jnp.zeros(shape, jnp.int32), jnp.full(shape, -jnp.inf), jnp.full(shape, -jnp.inf)
    classes = jnp.arange(maps.shape[1], dtype=jnp.int32)
    (label, score, total), kept = jax.lax.scan(keep_best, nothing, (classes, averaged, class_mask))
    if kept is not None:
        return (jnp.exp(kept - total) if softmax == "pixels" else jnp.maximum(kept, 0),)
    return label, jnp.exp(score - total) if softmax == "pixels" else score
