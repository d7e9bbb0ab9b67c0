"""What a worker of a cluster does: it holds the model, and segments one piece of the pictures after another.

Nothing here knows Ray. A piece is done with the same functions as on one machine, so its labels are the same.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from dinov3seg_jax.data.scenes import View
from dinov3seg_jax.errors import UserError, one_line
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.pictures.batches import Outcome, segment_pictures
from dinov3seg_jax.pictures.earlier import read_summary
from dinov3seg_jax.pictures.finished import Picture
from dinov3seg_jax.text.class_lists import ClassList

Segment = Callable[[Sequence[Picture], Collection[Picture], Outputs], Iterator[Outcome]]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is asked of every picture, as it travels to the workers.

    Attributes:
        weights, step, overrides, zero_shot: the model, as `inference.load.load` takes it.
        names: the classes.
        batch_size, view: as for `segment_pictures`.
        memory: bytes that a worker may take; None: half of what is free when it starts, shared with those beside it.
        outputs: what is written of each picture.
    """

    weights: Path
    step: str
    overrides: tuple[str, ...]
    zero_shot: bool
    names: ClassList
    batch_size: int
    memory: int | None
    view: View
    outputs: Outputs


class Piece(Protocol):
    """Pictures that one worker does one after the other."""

    def segment(self, segment: Segment, asked: Asked) -> Iterator[Outcome]:
        """What became of each; errors of one picture are its outcome."""

    def named(self) -> Sequence[Picture]:
        """Its pictures; of a file of many, which nobody has opened yet, that file."""


@dataclasses.dataclass(frozen=True)
class Listed:
    """Pictures that are files, and so are their results."""

    pictures: tuple[Picture, ...]  # whole parts of `batches.neighbours`
    wanted: tuple[Picture, ...]

    def segment(self, segment: Segment, asked: Asked) -> Iterator[Outcome]:
        """See `Piece`. What a worker that died has left is passed over: old results were deleted before the work."""
        left = []
        for picture in self.wanted:
            done = picture.is_done(picture.state(), asked.outputs.formats) and "json" in asked.outputs.formats
            if done:
                yield Outcome(picture, read_summary(picture.summary))
            else:
                left.append(picture)
        yield from segment(self.pictures, left, asked.outputs)

    def named(self) -> Sequence[Picture]:
        """See `Piece`."""
        return self.wanted


class Work:
    """A loaded model, for one piece after another."""

    def __init__(self, asked: Asked, beside: int = 1):
        """Load the model.

        Args:
            asked: of every picture.
            beside: how many workers share the memory of a machine.

        Raises:
            UserError: it cannot be loaded here, or does not take the classes.
        """
        from dinov3seg_jax.cache.programs import keep_programs
        from dinov3seg_jax.inference.load import load
        from dinov3seg_jax.pictures.huge import auto_memory
        from dinov3seg_jax.store.folder import open_folder

        keep_programs()
        self._asked = asked
        folder = open_folder(asked.weights, asked.step)
        self._model = load(folder, list(asked.overrides), zero_shot=asked.zero_shot)
        self._names = self._model.check_names(asked.names)
        self._memory = asked.memory or auto_memory() // beside

    def do(self, piece: Piece) -> Iterator[Outcome]:
        """What became of each picture of a piece; where something unforeseen happens, the rest of it has failed."""
        left = dict.fromkeys(piece.named())
        try:
            for outcome in piece.segment(self._segment, self._asked):
                left.pop(outcome.picture, None)
                yield outcome
        except UserError as error:
            yield from (Outcome(picture, None, str(error)) for picture in left)
        except Exception as error:  # of a library; the other pieces are none the worse for it
            said = f"{type(error).__name__}: {one_line(error, 200)}"
            yield from (Outcome(picture, None, f"{picture.path} could not be segmented ({said})") for picture in left)

    def _segment(self, pictures: Sequence[Picture], wanted: Collection[Picture], outputs: Outputs) -> Iterator[Outcome]:
        asked = self._asked
        return segment_pictures(
            self._model, self._names, pictures, set(wanted), asked.batch_size, self._memory, asked.view, outputs
        )
