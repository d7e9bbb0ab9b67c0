"""The files of an answer, as `predict` writes them, in one archive; drawn as the page draws them."""

import contextlib
import dataclasses
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
from PIL import ImageColor

from dinov3seg_jax import visualize
from dinov3seg_jax.app.results import Answer
from dinov3seg_jax.errors import UserError, one_line
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.formats.table import FORMATS, asked, missing_library
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.pictures import huge
from dinov3seg_jax.text.class_lists import ClassList, NamedClass
from dinov3seg_jax.text.class_lists.asked import UNKNOWN_COLOR

SCORES = "scores"  # the format that the model has to be asked for again
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
        """The result in these colours, with pixels below the threshold as a class of their own.

        Raises:
            UserError: a colour is none, or a class has the name of what is unknown.
        """
        colors = result.colors.copy()
        for place, name in enumerate(result.names):
            if name in self.colors:
                colors[place] = _rgb(self.colors[name])
        result = dataclasses.replace(result, colors=colors, drawing=visualize.Drawing(opacity=self.opacity))
        if not self.min_confidence:
            return result
        classes = ClassList(tuple(NamedClass((name,)) for name in result.names))
        names = ClassList.of(classes, min_confidence=self.min_confidence).names
        sure = (result.labels < 0) | (result.confidence >= self.min_confidence)
        return dataclasses.replace(
            result,
            labels=np.where(sure, result.labels, np.int32(len(names) - 1)),
            names=names,
            colors=np.concatenate([colors, np.array([UNKNOWN_COLOR], np.uint8)]),
        )


def available() -> list[str]:
    """The formats whose libraries are installed."""
    return [name for name in FORMATS if missing_library(name) is None]


def check_formats(formats: Sequence[str], min_area: str = "", simplify: float = 0.0) -> Outputs:
    """What is asked for; see `formats.table.asked`.

    Raises:
        UserError: there is no format, one is not known or lacks its library, or a value cannot be used.
    """
    if not isinstance(formats, list | tuple) or not formats:
        raise UserError(f"no format is chosen; choose some of {', '.join(available())}, in a list")
    return asked([str(one) for one in formats], min_area or 0, simplify)


def archive(
    answer: Answer,
    outputs: Outputs,
    drawing: Drawing,
    folder: Path,
    score: Callable[[int], np.ndarray],
) -> Path:
    """Write the files of one answer.

    Args:
        answer: with results; those of a second list of names lie in a folder of their own.
        outputs: what is asked for.
        drawing: how results are drawn.
        folder: for the archive.
        score: the scores of every class for a result's number, as float [t, h, w].

    Returns:
        A zip file.

    Raises:
        UserError: a format cannot hold the picture, or the drawing does not fit.
    """
    stem = stem_of(answer.name)
    with tempfile.TemporaryDirectory(dir=folder) as written:
        for number, result in enumerate(answer.results):
            place = Path(written, f"names_{number + 1}" if len(answer.results) > 1 else "")
            scores = score(number) if SCORES in outputs.formats else None
            drawn = dataclasses.replace(drawing.applied(result), scores=scores)
            huge.save_result(drawn, place, stem, answer.name, outputs, answer.source)
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
