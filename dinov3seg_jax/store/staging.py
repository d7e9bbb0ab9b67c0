"""Where arrays are written and read that lie in a bucket.

orbax and TensorStore reach `gs://` by themselves. On `s3://` a step is written on the local disk, and copied; to be
read, it is copied to a local cache.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dinov3seg_jax.folders import copy_tree, fetch
from dinov3seg_jax.places import is_remote, local_copy
from dinov3seg_jax.scratch import scratch

REACHED = re.compile(r"gs://[^#?%*\[\]]+")  # without what orbax takes for a part of a URL, or for a pattern
FINISHED = "commit_success.txt"  # orbax's own, without which it reads nothing that is in a bucket: a copy of a run


def is_reached(folder: Path) -> bool:
    """Whether arrays can be written to a folder, and read from it, where it is."""
    return not is_remote(folder) or bool(REACHED.fullmatch(str(folder)))


@contextlib.contextmanager
def readable(folder: Path, keep: bool = True) -> Iterator[Path]:
    """The folder, or a copy of it, where arrays can be read; a copy that is not to be kept goes when it was read."""
    if not is_remote(folder) or (is_reached(folder) and (folder / FINISHED).is_file()):
        yield folder
    elif keep:
        yield local_copy(folder)
    else:
        stage = scratch()
        try:
            fetch(folder, stage / folder.name)
            yield stage / folder.name
        finally:
            shutil.rmtree(stage, ignore_errors=True)


class Copied:
    """What is being saved on the local disk, to be copied to where it belongs."""

    def __init__(self, folder: Path, save: Callable[[Path], Any]):
        """Begin: `save` starts to write a new folder, and returns a response whose `result` waits for that."""
        self._folder, self._stage = folder, scratch()
        self._saving = save(self._stage / folder.name)

    def result(self) -> None:
        """Wait for all of it."""
        try:
            self._saving.result()
            copy_tree(self._stage / self._folder.name, self._folder)
        finally:
            shutil.rmtree(self._stage, ignore_errors=True)
