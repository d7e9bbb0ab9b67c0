"""A look at the masks of a data set before anything depends on them: do they say what the class list means?

All masks of a small set are read, and an evenly spread sample of a large one. What cannot be right is refused: files
that cannot be read, sizes that differ, values that are no class, and masks that label nothing at all. What is odd, such
as a class that never occurs, is said.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from dinov3seg_jax.data.datasets import Dataset
from dinov3seg_jax.data.masks import IndexReader, Mask, MaskReader
from dinov3seg_jax.errors import UserError

SAMPLE = 500  # masks
PIXELS = 250_000_000  # of which no further mask is read
WAVES = 16  # each spread evenly; the pixels are counted after each
THREADS = 4
RARE = 0.01  # of the pixels: fewer labelled ones are worth a word
LONGEST_TABLE = 20  # classes; of longer lists, those that never occur are named
NAMED = 8  # of those, and of values
WHITE = 255
PART = 2**22  # pixels that are counted together, as counting takes eight times their memory


@runtime_checkable
class Masks(Protocol):
    """A source whose masks can be read without their pictures; see `folder.ImageFolder`."""

    reader: MaskReader

    def __len__(self) -> int: ...

    def mask(self, index: int, /) -> Mask: ...


@dataclass(frozen=True)
class Census:
    """Pixels by the value that stands in the masks."""

    masks: int  # that were read
    of: int  # that there are
    pixels: dict[int, int]
    example: dict[int, str]  # for each value a mask that holds it
    palette: tuple[int, ...]  # of the first mask that has one
    most: int  # classes in one mask

    @property
    def scope(self) -> str:
        """Which masks these are."""
        return f"masks ({self.masks:,} of {self.of:,} read)"

    def shares(self, values: Iterable[int]) -> str:
        """As in "0 (61.2 %) and 255 (38.8 %)"; the most frequent of many."""
        most = sorted(sorted(values, key=lambda value: -self.pixels[value])[:NAMED])
        return _and([f"{value} ({_percent(self.pixels[value], self.pixels)})" for value in most])


def check_masks(dataset: Dataset, tell: Callable[[str], None] | None = None) -> Census | None:
    """Count the pixels of each value, and refuse masks that cannot be right.

    Args:
        dataset: to be trained or scored on.
        tell: takes a note for each thing that is odd but may be meant; for scores nothing is odd that can be scored.

    Returns:
        None for a source without masks on disk.

    Raises:
        UserError: There is no mask; a file cannot be read or has another size than its picture, a mask holds a value
            that is no class, or no mask labels a single pixel.
    """
    source = dataset.source
    if not isinstance(source, Masks):
        return None
    if not len(source):
        raise UserError("the data set holds no pictures; check its folder and its split.")
    census = take_census(source)
    meaning = Meaning(source.reader, dataset.classes, dataset.listed)
    _refuse(census, meaning)
    if tell is not None and dataset.listed is not None:
        for note in _notes(census, meaning):
            tell(note)
    return census


def take_census(source: Masks) -> Census:
    """Count a sample, and more until something is labelled.

    Raises:
        UserError: as `source.mask` does.
    """
    pixels: Counter[int] = Counter()
    example: dict[int, str] = {}
    palette: tuple[int, ...] = ()
    masks, most, labelled = 0, 0, False
    with ThreadPoolExecutor(THREADS) as pool:
        for wave in _waves(len(source)):
            if labelled and (masks >= min(SAMPLE, len(source)) or pixels.total() >= PIXELS):
                break
            for counted in pool.map(lambda index: count_values(source.mask(index)), wave):
                masks += 1
                pixels.update(counted.pixels)
                palette = palette or counted.palette
                most = max(most, sum(value in source.reader.class_of_id for value in counted.pixels))
                for value in counted.pixels:
                    example.setdefault(value, counted.name)
            labelled = any(value in source.reader.class_of_id for value in pixels)
    return Census(masks, len(source), dict(sorted(pixels.items())), example, palette, most)


class Counted(NamedTuple):
    """One mask."""

    name: str
    pixels: dict[int, int]
    palette: tuple[int, ...]


def count_values(mask: Mask) -> Counted:
    """The pixels of each value of a mask."""
    pixels: Counter[int] = Counter()
    values = mask.values.ravel()
    for part in np.array_split(values, values.size // PART + 1):
        if part.dtype.itemsize <= 2:
            counts = np.bincount(part)  # many times faster
            found = np.flatnonzero(counts)
            counts = counts[found]
        else:
            found, counts = np.unique(part, return_counts=True)
        pixels.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
    return Counted(mask.name, pixels, mask.palette)


def _waves(count: int) -> Iterator[Sequence[int]]:
    """Indices of a sample in evenly spread parts, and then of all others."""
    sample = np.unique(np.linspace(0, count - 1, min(count, SAMPLE)).round().astype(int))
    for first in range(WAVES):
        yield sample[first::WAVES].tolist()
    rest = np.setdiff1d(np.arange(count), sample)
    for first in range(0, len(rest), SAMPLE):
        yield rest[first : first + SAMPLE].tolist()


class Meaning(NamedTuple):
    """What the values of masks are said to mean."""

    reader: MaskReader
    names: tuple[str, ...]
    listed: Path | None  # where it is said, if that is the user's own file

    @property
    def where(self) -> str:
        """What says it."""
        return str(self.listed or "the data set")

    @property
    def file(self) -> str:
        """The same for somebody who has read it once."""
        return self.listed.name if self.listed else "it"

    @property
    def ids(self) -> list[int]:
        """Values of classes, in order."""
        return sorted(self.reader.class_of_id)


def _refuse(census: Census, meaning: Meaning) -> None:
    found, ids = list(census.pixels), meaning.ids
    strange = [value for value in found if not meaning.reader.is_declared(value)]
    labelled = [value for value in found if value in meaning.reader.class_of_id]
    listed = f"{meaning.where} lists {_numbers(ids)}"
    mend = likely_mend(census, meaning) or "declare what they hold, or make the masks anew"
    if strange:
        others = f"the {census.scope} hold {census.shares(found)}, and {listed}"
        raise UserError(
            f"mask {census.example[strange[0]]} holds the value {strange[0]}, which is no class: {others}; {mend}."
        )
    if not labelled and isinstance(meaning.reader, IndexReader):  # whose values nobody has written
        raise UserError(
            f"none of the {census.scope}, such as {next(iter(census.example.values()))}, shows a class of "
            f"{meaning.where}; make one fit the other."
        )
    if not labelled:
        raise UserError(
            f"none of the {census.scope}, such as {next(iter(census.example.values()))}, labels a single pixel: they "
            f"hold {census.shares(found)}, and {listed}; {mend}."
        )


def _notes(census: Census, meaning: Meaning) -> Iterator[str]:
    class_of_id = meaning.reader.class_of_id
    missing = [number for number in meaning.ids if number not in census.pixels]
    ignored = [value for value in census.pixels if value not in class_of_id]
    apart = f"; ignored: {census.shares(ignored)}" if ignored else ""
    if missing:
        occur = "occurs" if len(missing) == 1 else "occur"
        said = f"{len(missing)} of {len(class_of_id)} classes in {meaning.where} never {occur} in the {census.scope}"
        if len(class_of_id) > LONGEST_TABLE:
            names = [meaning.names[class_of_id[number]] for number in missing]
            yield f"{said}: {_and(names)}{apart}"
        else:
            yield "\n".join([f"{said}{apart}", *_table(census, meaning)])
    elif sum(census.pixels[value] for value in ignored) > (1 - RARE) * sum(census.pixels.values()):
        yield f"nearly nothing is labelled in the {census.scope}{apart}"
    if len(class_of_id) == 1:
        yield (
            f"{meaning.where} lists one class and all else is ignored, so that a model learns to see it everywhere; "
            "give the rest a class too"
        )
    mend = likely_mend(census, meaning)
    if mend is not None:
        yield f"the {census.scope} hold {census.shares(census.pixels)}: {mend}"


def _table(census: Census, meaning: Meaning) -> Iterator[str]:
    for number in meaning.ids:
        name = meaning.names[meaning.reader.class_of_id[number]]
        pixels = census.pixels.get(number, 0)
        yield f"{number:7}  {_percent(pixels, census.pixels):>8}  {name[:40]}{'' if pixels else '  <- never occurs'}"


def likely_mend(census: Census, meaning: Meaning) -> str | None:
    """What a person probably has to do whose masks and ids do not fit; None where nothing comes to mind.

    Ids are read in the ways that people mix up, and the reading that explains most values counts, if it explains more
    than the one that was given.
    """
    if meaning.listed is None:
        return "take the official files, and prepare the data set anew"
    if isinstance(meaning.reader, IndexReader):
        return None
    ids, found = meaning.ids, set(census.pixels)
    strange = any(not meaning.reader.is_declared(value) for value in found)
    least = len(found & set(ids)) + (not strange)
    readings = [reading for reading in _readings(ids, found, meaning.file) if found <= reading.ids | {0, WHITE}]
    best = max(readings, key=lambda reading: len(found & reading.ids), default=None)
    if best is not None and len(found & best.ids) >= max(least, 1):
        return best.mend
    levels = _grey_levels(census.palette, found)
    if levels != found and levels <= {*ids, 0, WHITE} and levels & set(ids):
        return (
            f"of a palette the indices count, but its grey levels are {_numbers(sorted(levels))}: if those are the "
            "ids, save the masks as grey, such as by Pillow's convert('L')"
        )
    if strange and len(found) > 2 * len(ids) + 2:
        return (
            "so many values are numbers of objects, or smoothed edges: make the masks anew, with the id of its class "
            "at each pixel and without smoothing"
        )
    return None


class Reading(NamedTuple):
    """Ids as they would be in the masks if somebody had made a common mistake."""

    ids: set[int]
    mend: str


def _readings(ids: Sequence[int], found: set[int], where: str) -> Iterator[Reading]:
    scaled = [[0, WHITE]] if len(ids) == 2 and found == {0, WHITE} else []
    telling = found - {0}  # of one level alone, many ids say nothing
    if 0 < (top := max(ids)) < WHITE and (len(telling) > 1 or len(ids) <= 2):
        scaled += [[kind(number * WHITE / top) for number in ids] for kind in (int, round)]
        for stored in (telling, telling - {WHITE}):
            step = math.gcd(*stored)
            if step > 1:
                scaled.append([number * step for number in ids])
    for values in scaled:
        if values != ids:
            wanted, given = _numbers(values), _numbers(ids)
            ids_are = "id" if len(ids) == 1 else "ids"
            mend = f"say {ids_are} {wanted} in {where} instead of {given}, or write {given} into the masks instead"
            yield Reading(set(values), mend)
    yield Reading({number + 1 for number in ids}, f"if the masks count from 1, add 1 to each id in {where}")
    if found != {0, WHITE}:
        yield Reading({number - 1 for number in ids}, f"if the masks count from 0, subtract 1 from each id in {where}")


def _grey_levels(palette: Sequence[int], found: Iterable[int]) -> set[int]:
    """The levels that a grey palette shows for these indices; none for one in colours."""
    colours = [palette[3 * index : 3 * index + 3] for index in found] if palette else []
    return {colour[0] for colour in colours} if all(len(set(colour)) == 1 for colour in colours) else set()


def _percent(pixels: int, of: Mapping[int, int]) -> str:
    share = 100 * pixels / sum(of.values())
    return f"{share:.1f} %" if not pixels or share >= 0.05 else "< 0.1 %"


def _numbers(numbers: Sequence[int]) -> str:
    """As in "1, 2 and 7", or "0 to 149"."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return _and([str(number) for number in numbers])


def _and(words: Sequence[str]) -> str:
    shown = [*words[:NAMED], f"{len(words) - NAMED} more"] if len(words) > NAMED else list(words)
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
