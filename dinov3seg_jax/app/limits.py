"""How much a stranger may ask for, and the sentences for what is too much. Headers are read here, never pixels."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from dinov3seg_jax.data.images import open_picture
from dinov3seg_jax.data.readers import open_scene
from dinov3seg_jax.errors import UserError, one_line

LONGEST_TEXT = 50_000  # letters of a list of names
DIVIDERS = ",;|\n[{"  # of which a text that names a file holds none, see `class_lists.parse_names`


@dataclass(frozen=True)
class Limits:
    """What one question may hold, and how many may wait."""

    upload: int = 100_000_000  # bytes of a file
    pixels: int = 100_000_000  # of a picture, by its header
    names: int = 500
    queue: int = 20  # questions that wait

    def check_upload(self, path: Path, name: str) -> None:
        """An upload, by its header alone.

        Args:
            path: of the file.
            name: as its owner knows it.

        Raises:
            UserError: it is no picture, or too large.
        """
        try:
            size = path.stat().st_size
            if size > self.upload:
                raise UserError(f"{path} has {size:,} bytes, more than {self.upload:,}; make it smaller")
            height, width = _declared_size(path)
            if height * width > self.pixels:
                raise UserError(f"{path} has {width:,} x {height:,} pixels, more than {self.pixels:,}; make it smaller")
        except OSError as error:
            raise UserError(f"{name} is here no more; drop it again") from error
        except UserError as error:
            raise as_known(error, path, name) from error

    def check_text(self, text: str) -> str:
        """A list of names as it was typed, which is no path: one name alone has a comma behind it.

        Raises:
            UserError: it is empty or too long, or names a file, none of which is read for a stranger.
        """
        if not isinstance(text, str) or not text.strip():
            raise UserError('there is no class name; type some, as in "dog, grass, sky"')
        if len(text) > LONGEST_TEXT:
            raise UserError(f"the list of names has {len(text):,} letters, more than {LONGEST_TEXT:,}; shorten it")
        if text.lstrip().startswith("@"):
            raise UserError(f"'{one_line(text, 60)}' names a file, and none is read here; paste the names themselves")
        return text if any(sign in text for sign in DIVIDERS) else f"{text},"

    def check_count(self, count: int) -> None:
        """How many names were understood.

        Raises:
            UserError: there are too many.
        """
        if count > self.names:
            raise UserError(f"the list has {count:,} names, more than {self.names:,}; ask in several parts")


def _declared_size(path: Path) -> tuple[int, int]:
    """Height and width as the pixels are stored; which way up they go would take decoding a PNG."""
    scene = open_scene(path, str(path))
    if scene is not None:
        with contextlib.closing(scene):
            return scene.height, scene.width
    with open_picture(path, str(path)) as image:
        return image.height, image.width


def as_known(error: UserError, path: Path, name: str) -> UserError:
    """The same sentence with the file's own name: where it lies here is nobody's business."""
    return UserError(str(error).replace(str(path), one_line(name, 100)))
