"""How much a stranger may ask for, and the sentences for what is too much. Headers are read here, never pixels."""

from dataclasses import dataclass
from pathlib import Path

from dinov3seg_jax.errors import UserError, one_line
from dinov3seg_jax.pictures.rasters import Look, look_at

LONGEST_TEXT = 50_000  # letters of a list of names


@dataclass(frozen=True)
class Limits:
    """What one question may hold, and how many may wait."""

    upload: int = 50_000_000  # bytes of a file
    pixels: int = 100_000_000  # of a picture, by its header
    names: int = 500
    queue: int = 20  # questions that wait

    def look(self, path: Path, name: str) -> Look:
        """What the header of an upload says.

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
            look = look_at(path)
            if look.height * look.width > self.pixels:
                raise UserError(
                    f"{path} has {look.width:,} x {look.height:,} pixels, more than {self.pixels:,}; make it smaller"
                )
        except OSError as error:
            raise UserError(f"{name} is here no more; drop it again") from error
        except UserError as error:
            raise as_known(error, path, name) from error
        return look

    def check_text(self, text: str) -> str:
        """A list of names as it was typed.

        Raises:
            UserError: it is empty or too long, or names a file, none of which is read for a stranger.
        """
        if not isinstance(text, str) or not text.strip():
            raise UserError('there is no class name; type some, as in "dog, grass, sky"')
        if len(text) > LONGEST_TEXT:
            raise UserError(f"the list of names has {len(text):,} letters, more than {LONGEST_TEXT:,}; shorten it")
        if text.lstrip().startswith("@"):
            raise UserError(f"'{one_line(text, 60)}' names a file, and none is read here; paste the names themselves")
        return text

    def check_count(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Names that were understood.

        Raises:
            UserError: there are too many.
        """
        if len(names) > self.names:
            raise UserError(f"the list has {len(names):,} names, more than {self.names:,}; ask in several parts")
        return names


def as_known(error: UserError, path: Path, name: str) -> UserError:
    """The same sentence with the file's own name: where it lies here is nobody's business."""
    return UserError(str(error).replace(str(path), one_line(name, 100)))
