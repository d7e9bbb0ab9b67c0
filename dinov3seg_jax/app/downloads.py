"""The files of an answer, as `predict` writes them, in one archive; drawn as the page draws them."""

import contextlib
import dataclasses
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
from PIL import ImageColor

from dinov3seg_jax.errors import UserError, did_you_mean, one_line
from dinov3seg_jax.inference.result import Segmentation

FORMATS = {"overlay": "_overlay.png", "labels": "_labels.png", "json": ".json"}
UNKNOWN, GREY = "unknown", (138, 141, 145)
LONGEST_STEM = 60  # letters of a picture's name that its results keep

Share = Annotated[float, pydantic.Field(ge=0, le=1)]


class Drawing(pydantic.BaseModel):
    """What the page shows otherwise than the result says."""

    opacity: Share = 0.55
    min_confidence: Share = 0  # below it a pixel is unknown
    colors: dict[str, str] = {}  # "#rrggbb" by the names of classes

    @classmethod
    def read(cls, text: str) -> "Drawing":
        """As the page sends it.

        Raises:
            UserError: it is something else.
        """
        with _one_sentence():
            return cls.model_validate_json(text or "{}")

    @classmethod
    def of(cls, **values: Any) -> "Drawing":
        """As a program gives it.

        Raises:
            UserError: a value is out of range, or of another type.
        """
        with _one_sentence():
            return cls.model_validate(values)

    def applied(self, result: Segmentation) -> Segmentation:
        """The result in these colours, with pixels below the threshold as a class of their own."""
        colors = result.colors.copy()
        for place, name in enumerate(result.names):
            if name in self.colors:
                colors[place] = _rgb(self.colors[name])
        result = dataclasses.replace(result, colors=colors)
        if not self.min_confidence:
            return result
        below = (result.labels >= 0) & (result.confidence < self.min_confidence)
        return dataclasses.replace(
            result,
            labels=np.where(below, len(result.names), result.labels),
            names=(*result.names, UNKNOWN),
            colors=np.concatenate([colors, np.array([GREY], np.uint8)]),
        )


def check_formats(formats: Sequence[str]) -> list[str]:
    """The formats that are asked for.

    Raises:
        UserError: there is none, or one is not known.
    """
    if not isinstance(formats, list | tuple) or not formats:
        raise UserError(f"no format is chosen; choose some of {', '.join(FORMATS)}, in a list")
    for one in map(str, formats):
        if one not in FORMATS:
            shown = one_line(one, 40)
            raise UserError(f"there is no format '{shown}'{did_you_mean(shown, FORMATS)}; choose {', '.join(FORMATS)}")
    return list(dict.fromkeys(formats))


def archive(results: Sequence[Segmentation], name: str, formats: Sequence[str], drawing: Drawing, folder: Path) -> Path:
    """Write the files of one answer.

    Args:
        results: one for each list of names; those of a second list lie in a folder of their own.
        name: of the picture's file.
        formats: of `FORMATS`.
        drawing: how they are drawn.
        folder: for the archive.

    Returns:
        A zip file.

    Raises:
        UserError: a format is not known, or the drawing does not fit.
    """
    wanted, stem = check_formats(formats), stem_of(name)
    with tempfile.TemporaryDirectory(dir=folder) as written:
        for number, result in enumerate(results, start=1):
            place = Path(written, f"names_{number}" if len(results) > 1 else "")
            for path in drawing.applied(result).save(place, stem, file=name):
                if not any(path.name == stem + FORMATS[one] for one in wanted):
                    path.unlink()
        path = Path(tempfile.mkdtemp(dir=folder), f"{stem}.zip")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as zipped:  # most are compressed already
            for file in sorted(Path(written).rglob("*")):
                if file.is_file():
                    zipped.write(file, file.relative_to(written))
    return path


def stem_of(name: str) -> str:
    """A beginning of files' names, from a name that anybody may have chosen."""
    kept = "".join(letter if letter.isalnum() or letter in "-_ ." else "_" for letter in Path(name).stem)
    return kept.strip(" .")[:LONGEST_STEM] or "result"


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
    try:
        yield
    except pydantic.ValidationError as error:
        (first, *_) = error.errors()
        where = ".".join(map(str, first["loc"])) or "the drawing"
        message = first["msg"].replace("Input should be", "it should be")
        raise UserError(f"{one_line(where, 60)} cannot be used: {message}") from error


def _rgb(color: str) -> tuple[int, ...]:
    try:
        return ImageColor.getrgb(color)[:3]
    except ValueError as error:
        raise UserError(f"'{one_line(color, 40)}' is no colour; write it as in #aa3300") from error
