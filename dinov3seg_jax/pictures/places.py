"""Where the results of pictures go."""

import collections
import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dinov3seg_jax.errors import UserError, reason
from dinov3seg_jax.places import is_remote


def refuse_place(named: Sequence[Path], out: Path) -> None:
    """Raise a `UserError` where the results of what was named cannot go."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, but the results need a folder; choose another --out")
    for source in named:
        if is_remote(source) == is_remote(out) and source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise UserError(f"{out} lies in the folder of the pictures, {source}; choose another --out")


@contextlib.contextmanager
def written_to(out: Path) -> Iterator[None]:
    """Turn what goes wrong where results are written into a sentence.

    Raises:
        UserError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{out} cannot be written ({reason(error)}); choose another --out") from error


def titles(roots: Mapping[Path, Path]) -> list[str]:
    """What each picture is called in files about all of them: its path, with slashes, below the folder that holds all.

    Args:
        roots: of each picture, the folder below which it has its place.
    """
    if not roots:
        return []
    levels = zip(*(root.absolute().parts for root in roots.values()), strict=False)
    base = sum(1 for _ in itertools.takewhile(lambda names: len(set(names)) == 1, levels))
    if not base:  # on this machine and in a bucket
        return [str(path) for path in roots]
    return ["/".join(path.absolute().parts[base:]) for path in roots]


def output_places(roots: Mapping[Path, Path], out: Path) -> list[Path]:
    """Folder and stem of each picture's output: its place below its root, and its suffix where stems are not unique.

    No two are the same: whoever shares a name takes its next one: with the suffix; its own with the dot, as files have
    it; and, where pictures of several folders meet, with the names of the folders above it.

    Args:
        roots: of each picture, the folder below which it has its place.
        out: folder of all results.
    """
    several = len(set(roots.values())) > 1
    names = {path: [path.stem, path.name.replace(".", "_"), path.name] for path in roots}
    if several:
        for path, choices in names.items():
            above = path.absolute().parent.parts[1:]
            choices += ["_".join((*above[len(above) - count :], path.name)) for count in range(1, len(above) + 1)]
    while True:
        places = {path: path.with_name(name).relative_to(roots[path]).as_posix() for path, [name, *_] in names.items()}
        users = collections.Counter(places.values())
        sharing = [path for path, place in places.items() if users[place] > 1 and len(names[path]) > 1]
        if not sharing:
            return [out / place for place in places.values()]
        for path in sharing:
            del names[path][0]
