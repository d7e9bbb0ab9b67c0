"""Showing a picture wherever the program runs: a notebook, a desktop, or a server without a screen."""

import os
import sys
import tempfile
from pathlib import Path

from PIL import Image


def show(picture: Image.Image) -> None:
    """Show a picture below a notebook's cell or in this computer's viewer; else save it, and print where."""
    if _in_notebook():
        from IPython.display import display

        display(picture)
    elif not (_has_display() and _in_viewer(picture)):
        path = Path(tempfile.mkdtemp(prefix="dinov3seg-"), "overlay.png")
        picture.save(path)
        print(f"there is no display; the picture is in {path}", flush=True)


def _in_viewer(picture: Image.Image) -> bool:
    from PIL import ImageShow  # here, as it imports IPython where that is installed

    return bool(ImageShow.show(picture))


def _in_notebook() -> bool:
    interactive = sys.modules.get("IPython")
    return interactive is not None and hasattr(interactive.get_ipython(), "kernel")


def _has_display() -> bool:
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
