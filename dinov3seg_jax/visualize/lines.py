"""A line of text in any script, measured and drawn."""

import functools
import math
from typing import NamedTuple

from PIL import ImageDraw, ImageFont

from dinov3seg_jax import fonts
from dinov3seg_jax.reading_order import from_left

RGB = tuple[int, int, int]
ELLIPSIS = "..."
_HALF_A_CAPITAL = 0.35  # of the size of letters: so far is the base line below the middle


class Line(NamedTuple):
    """A line of text at a size in pixels."""

    text: str
    size: int

    @property
    def width(self) -> int:
        """In pixels."""
        return _width(self.text, self.size)

    def fitted(self, width: int) -> "Line":
        """This, or as much of it as fits into `width` pixels."""
        if self.width <= width:
            return self
        parts = fonts.clusters(fonts.as_line(self.text))
        few, many = 0, len(parts)  # the first `few` fit, the first `many` do not
        while many - few > 1:
            middle = (few + many) // 2
            fits = self._cut(parts[:middle]).width <= width
            few, many = (middle, many) if fits else (few, middle)
        return self._cut(parts[:few]) if few else self._replace(text="")

    def draw(self, canvas: ImageDraw.ImageDraw, left: int, middle: int, ink: RGB, halo: RGB | None = None) -> None:
        """Draw it to the right of `left`, the middle of a capital letter at the height `middle`, with a rim or not."""
        base = middle + round(_HALF_A_CAPITAL * self.size)
        rim = 0 if halo is None else max(1, round(self.size / 9))
        for part, font, width, direction in _laid_out(self.text, self.size):
            canvas.text(
                (left, base),
                part,
                ink,
                font,
                anchor="ls",
                direction=direction,
                stroke_width=rim,
                stroke_fill=halo,
            )
            left += width

    def _cut(self, parts: list[str]) -> "Line":
        return self._replace(text="".join(parts).rstrip() + ELLIPSIS)


def _width(text: str, size: int) -> int:
    return sum(width for _, _, width, _ in _laid_out(text, size))


@functools.lru_cache(maxsize=4096)
def _laid_out(text: str, size: int) -> tuple[tuple[str, fonts.Font, int, str | None], ...]:
    """Each run as Pillow takes it, with its font, its width in pixels and, where it knows one, its direction."""
    found: list[tuple[str, fonts.Font, int, str | None]] = []
    for run in fonts.runs(text):
        font, part = fonts.load(run.file, size), run.text
        if getattr(font, "layout_engine", None) == ImageFont.Layout.RAQM:
            direction = "rtl" if run.leftwards else "ltr"
            found.append((part, font, math.ceil(font.getlength(part, direction=direction)), direction))
        else:
            part = from_left(part) if run.leftwards else part
            found.append((part, font, math.ceil(font.getlength(part)), None))
    return tuple(found)
