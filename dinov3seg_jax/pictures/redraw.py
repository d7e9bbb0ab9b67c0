"""Overlays that are to look otherwise, drawn again from the labels that are there: no model runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from dinov3seg_jax.data.scenes import View
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import write_whole
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.pictures.earlier import read_earlier
from dinov3seg_jax.pictures.finished import Picture, record_drawing
from dinov3seg_jax.visualize import draw, encode


def redraw(out: Path, done: Sequence[Picture], view: View, outputs: Outputs) -> Iterator[str]:
    """Draw the overlays of pictures that are done; where none failed, the folder says that they look so.

    Args:
        out: folder of the results.
        done: pictures with results there.
        view: which bands are shown, and how.
        outputs: what the overlays are to look like.

    Yields:
        For each picture, why it could not be drawn, or "".

    Raises:
        UserError: the folder cannot be written.
    """
    failed = False
    for picture in done:
        try:
            earlier = read_earlier(picture, view, outputs.drawing)
        except UserError as error:
            failed = True
            yield str(error)
            continue
        drawn = draw(*earlier[:4], earlier.drawing, earlier.counts, earlier.nodata)
        place = picture.target.with_name(f"{picture.target.name}_overlay.png")
        try:
            write_whole(place, encode(Image.fromarray(drawn)))
        except OSError as error:
            raise UserError(f"{place} cannot be written ({error.strerror or error}); make room for it") from error
        yield ""
    if not failed:
        record_drawing(out, outputs)
