"""Folders of this machine for what is on its way to a bucket or from it; what killed processes left goes away.

They are named by their process's number, as all temporary files are.
"""

import atexit
import functools
import glob
import os
import shutil
import socket
import tempfile
from pathlib import Path


def scratch() -> Path:
    """A new folder, which is gone when this process ends, if not before."""
    return Path(tempfile.mkdtemp(dir=_of_this_process()))


@functools.cache
def _of_this_process() -> Path:
    begins = f"dinov3seg-{socket.gethostname()}-"
    for left in Path(tempfile.gettempdir()).glob(f"{glob.escape(begins)}*"):
        owner = left.name.removeprefix(begins).partition("-")[0]
        if owner.isdecimal() and int(owner) != os.getpid() and has_ended(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=f"{begins}{os.getpid()}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def has_ended(process: int) -> bool:
    """Whether no other process has this number, as far as one host can tell."""
    if process == os.getpid():  # which has written nothing yet
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:  # another user's
        pass
    return False
