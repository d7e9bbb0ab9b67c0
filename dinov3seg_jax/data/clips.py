"""Frames of a video file, one after the other, read with PyAV (the extra `video`)."""

import contextlib
import importlib.util
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dinov3seg_jax.errors import UserError, reason
from dinov3seg_jax.files import expanded
from dinov3seg_jax.places import is_remote, local_copy

SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".mts", ".m2ts", ".wmv", ".flv", ".ogv")
)
# Of FFmpeg's names; not those that are lists of other files or addresses.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,asf,flv,ogg"
HEAD = 512  # bytes that tell a video from a picture
STILL_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"hevx", b"mif1", b"msf1", b"crx ")
PACKET = 188  # bytes, of an MPEG transport stream

UNKNOWN_COLORS = 2  # FFmpeg's word for colours whose matrix is not said
HD_HEIGHT = 720  # from which players then take BT.709
ROUNDING, BESIDE = Fraction(1, 50), Fraction(1)  # how much shorter than it says a whole video may be; seconds if the
# length is that of its sound


def is_clip(path: Path) -> bool:
    """Whether a file is a video, by its ending, or by its first bytes where the ending says nothing.

    In a bucket the ending has to say it: a request for each of a million pictures would take hours.
    """
    if path.suffix.lower() in SUFFIXES or is_remote(path):
        return path.suffix.lower() in SUFFIXES
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return False
    return (
        (head[4:8] == b"ftyp" and head[8:12] not in STILL_BRANDS)
        or head[4:8] in (b"moov", b"mdat", b"wide")
        or head.startswith((b"\x1a\x45\xdf\xa3", b"\0\0\1\xba", b"\x30\x26\xb2\x75", b"FLV\1", b"OggS"))
        or (head.startswith(b"RIFF") and head[8:12] == b"AVI ")
        or head[:1] == head[PACKET : PACKET + 1] == b"\x47"
    )


def has_reader() -> bool:
    """Whether videos can be read with what is installed."""
    return importlib.util.find_spec("av") is not None


def import_av() -> Any:
    """PyAV.

    Raises:
        UserError: it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UserError("videos are read with PyAV, which is not installed; install the extra 'video'") from error
    return av


class Frame:
    """One frame, as decoded; it becomes RGB only when it is asked for.

    Attributes:
        number: from 0, of all that can be decoded.
        time: in seconds from the first frame.
    """

    def __init__(self, number: int, time: Fraction, decoded: Any, size: tuple[int, int]):
        """Take what PyAV decoded; `size` is the height and width that it gets before it is turned."""
        self.number, self.time = number, time
        self._decoded, self._size = decoded, size

    def rgb(self) -> UInt8[np.ndarray, "h w 3"]:
        """Its pixels, RGB, 0 to 255, upright."""
        height, width = self._size
        unsaid = self._decoded.colorspace == UNKNOWN_COLORS and height >= HD_HEIGHT
        colors = "ITU709" if unsaid else None
        pixels = self._decoded.to_ndarray(format="rgb24", width=width, height=height, src_colorspace=colors)
        return np.ascontiguousarray(np.rot90(pixels, _quarters(self._decoded)))


def _quarters(decoded: Any) -> int:
    """By how many quarters of a turn, counterclockwise, a frame is to be turned."""
    return round(decoded.rotation / 90)


class Clip:
    """A video that is open for reading, once.

    Attributes:
        rate: frames in a second, on average.
        time_base: seconds; times of frames are multiples of it.
        aspect: width of a pixel by its height, upright; 1 where that is not said.
        expected: frames that it should have, roughly; None if that is not said.
        frames_read: so far.
        damage: after reading, one sentence about what could not be read; empty if all could.
    """

    def __init__(self, container: Any, path: Path):
        """Take what PyAV opened.

        Raises:
            UserError: there is no video in it.
        """
        av = import_av()
        cover = av.stream.Disposition.attached_pic
        streams = [stream for stream in container.streams.video if not stream.disposition & cover]
        if not streams:
            raise UserError(f"{path} has no video in it; give a file that has, or a picture")
        self._container, self._stream, self._path, self._errors = container, streams[0], path, av.FFmpegError
        self.rate = Fraction(self._stream.average_rate or self._stream.guessed_rate or 25)
        self.time_base = Fraction(self._stream.time_base)
        self.aspect = Fraction(self._stream.sample_aspect_ratio or 1) or Fraction(1)
        self.seconds, self._tolerance = self._length(av.time_base)
        self.expected = self._stream.frames or (round(self.seconds * self.rate) if self.seconds else None)
        self.frames_read, self.damage = 0, ""

    def __iter__(self) -> Iterator[Frame]:
        """Its frames. All get the size of the first one, should a later one have another.

        What cannot be decoded is left out, and said in `damage`.

        Raises:
            UserError: no frame can be decoded.
        """
        size: tuple[int, int] | None = None
        first_loss: Fraction | None = None
        time = end = Fraction(0)
        start = latest = 0
        for decoded in self._decode():
            if decoded is None:
                first_loss = time if first_loss is None else first_loss
                continue
            # A broken or bare stream says no times, or the same ones again.
            ticks = decoded.pts if decoded.pts is not None else round(self.frames_read / self.rate / self.time_base)
            if size is None:
                size, start = (decoded.height, decoded.width), ticks
                self.aspect = 1 / self.aspect if _quarters(decoded) % 2 else self.aspect
            else:
                ticks = max(ticks, latest + 1)
            latest, time = ticks, (ticks - start) * self.time_base
            end = (ticks - start * self._from_first + (decoded.duration or 0)) * self.time_base
            self.frames_read += 1
            yield Frame(self.frames_read - 1, time, decoded, size)
        if not self.frames_read:
            raise UserError(f"{self._path} has no frame that can be read; save or copy it again")
        if first_loss is not None:
            self.damage = self._describe(first_loss)
        elif self.seconds and end + 2 / self.rate + self._tolerance < self.seconds:
            self.damage = self._describe(time)

    def _decode(self) -> Iterator[Any]:
        """Decoded frames, and None for each part that cannot be."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except self._errors:
                yield None
                return
            if packet is None:
                return
            try:
                yield from packet.decode()
            except self._errors:
                yield None
            if packet.is_corrupt:
                yield None

    def _length(self, base: int) -> tuple[Fraction | None, Fraction]:
        """The seconds that it says it lasts, and how far that may be wrong."""
        self._from_first = bool(self._stream.duration)  # a container's begins at 0, whenever its first frame comes
        if self._from_first:
            seconds = self._stream.duration * self.time_base
            return seconds, seconds * ROUNDING
        if self._container.duration:
            seconds = Fraction(self._container.duration, base)
            return seconds, seconds * ROUNDING + (BESIDE if len(self._container.streams) > 1 else 0)
        return None, Fraction(0)

    def _describe(self, time: Fraction) -> str:
        length = f" of {float(self.seconds):.1f} s" if self.seconds else ""
        return (
            f"{self._path} is damaged from {float(time):.1f} s on{length}: {self.frames_read} frames could be read; "
            "copy or save it again for the others"
        )


@contextlib.contextmanager
def open_clip(path: str | Path) -> Iterator[Clip]:
    """A video, as long as it is read.

    Raises:
        UserError: PyAV is not installed, or the file is missing, no video or too damaged to be opened.
    """
    av, path = import_av(), expanded(path)
    try:
        here = local_copy(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); check the path and its permissions") from error
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    try:
        container = av.open(f"file:{here}", options=options)
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise UserError(f"{path} cannot be read ({reason(error)}); check the path and its permissions") from error
        raise UserError(f"{path} is no video that can be read, or a part of it is lost; copy it again") from error
    with container:
        yield Clip(container, path)
