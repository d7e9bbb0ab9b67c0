"""Where the results of pictures go."""

import collections
from collections.abc import Sequence
from pathlib import Path

from dinov3seg_jax.data.images import list_images
from dinov3seg_jax.errors import UserError


def list_pictures(source: Path, out: Path) -> list[Path]:
    """The pictures of a file or a folder whose results go to another folder.

    Raises:
        UserError: there is no picture, or the results cannot go there.
    """
    paths = list_images(source)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, but the results need a folder; choose another --out")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out} lies in the folder of the pictures, {source}; choose another --out")
    return paths


def output_places(source: Path, paths: Sequence[Path], out: Path) -> list[Path]:
    """Folder and stem of each picture's output: its place below `source`, and its suffix where stems are not unique.

    No two are the same: whoever shares a name takes its next one, and at last its own with the dot, as files do.
    """
    root = source if source.is_dir() else source.parent
    names = {path: [path.stem, path.name.replace(".", "_"), path.name] for path in paths}
    while True:
        places = {path: path.with_name(choices[0]) for path, choices in names.items()}
        users = collections.Counter(places.values())
        sharing = [path for path, place in places.items() if users[place] > 1 and len(names[path]) > 1]
        if not sharing:
            return [out / place.relative_to(root) for place in places.values()]
        for path in sharing:
            del names[path][0]
