"""A picture of what is taken for what, of the classes that are confused most.

Drawn with Pillow, as all pictures here: a plotting library would be a dependency of every installation for this alone.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw

from dinov3seg_jax import fonts
from dinov3seg_jax.visualize.lines import Line

SHOWN = 24  # classes
OTHERS = "all others"

_CELL, _LETTERS, _GAP = 34, 14, 8  # pixels
_LONGEST = 24  # letters of a name
_INK, _PAPER, _GRID = (32, 33, 36), (255, 255, 255), (218, 220, 224)
_FULL = np.array([26, 95, 180])  # of a cell that holds all pixels of its row


def most_confused(counts: Int[np.ndarray, "c c+1"], shown: int = SHOWN) -> Int[np.ndarray, " k"]:
    """Indices of the classes with the most pixels that were taken for another or were another, in ascending order."""
    wrong = counts[:, :-1].copy()
    np.fill_diagonal(wrong, 0)
    involved = wrong.sum(axis=0) + wrong.sum(axis=1) + np.diag(counts[:, :-1]) / (1 + counts[:, :-1].sum())
    order = np.argsort(-involved, kind="stable")[:shown]
    return np.sort(order[involved[order] > 0])


def shares(counts: Int[np.ndarray, "c c+1"], chosen: Int[np.ndarray, " k"]) -> Float[np.ndarray, "k k+1"]:
    """What part of the pixels of each class was taken for each; the last column is all classes that are not chosen."""
    of_truth = counts[:, :-1].T[chosen]
    rows = np.concatenate([of_truth[:, chosen], np.delete(of_truth, chosen, axis=1).sum(axis=1, keepdims=True)], axis=1)
    return rows / np.maximum(rows.sum(axis=1, keepdims=True), 1)


def confusion_picture(
    counts: Int[np.ndarray, "c c+1"], classes: Sequence[str], shown: int = SHOWN
) -> UInt8[np.ndarray, "h w 3"]:
    """Rows are the truth and columns the prediction; a cell's number is its percentage of the row.

    Args:
        counts: `ConfusionMatrix.counts`.
        classes: the C names.
        shown: at most so many classes: those that are confused most.
    """
    chosen = most_confused(counts, shown)
    table = shares(counts, chosen)
    texts = [Line(_cut(name), _LETTERS) for name in (*(classes[index] for index in chosen), OTHERS)]
    font, small = fonts.load(None, _LETTERS), fonts.load(None, _LETTERS - 2)
    widest = max(text.width for text in texts) + 2 * _GAP
    title = "rows: truth, columns: prediction, numbers: percent of the row"
    left, top = widest, widest + _LETTERS + 2 * _GAP
    width = max(left + _CELL * len(table.T), int(font.getlength(title)) + _GAP) + _GAP
    canvas = Image.new("RGB", (width, top + _CELL * len(table) + _GAP), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, _GAP), title, _INK, font)
    for column, text in enumerate(texts):
        upright = Image.new("RGB", (widest, _CELL), _PAPER)
        text.draw(ImageDraw.Draw(upright), _GAP, _CELL // 2, _INK)
        canvas.paste(upright.rotate(90, expand=True), (left + _CELL * column, top - widest))
    for row, text in enumerate(texts[:-1]):
        text.draw(draw, left - _GAP - text.width, top + _CELL * row + _CELL // 2, _INK)
        for column, share in enumerate(table[row]):
            corner = left + _CELL * column, top + _CELL * row
            box = (*corner, corner[0] + _CELL, corner[1] + _CELL)
            color = tuple(int(value) for value in np.rint(np.array(_PAPER) + share * (_FULL - _PAPER)))
            draw.rectangle(box, fill=color, outline=_GRID)
            if share >= 0.005:
                middle = corner[0] + _CELL // 2, corner[1] + _CELL // 2
                draw.text(middle, f"{100 * share:.0f}", _PAPER if share > 0.5 else _INK, small, anchor="mm")
    return np.asarray(canvas)


def _cut(name: str) -> str:
    """A name, cut short where it is long."""
    parts = fonts.clusters(fonts.as_line(name))
    return name if len(parts) <= _LONGEST else "".join(parts[: _LONGEST - 3]).rstrip() + "..."
