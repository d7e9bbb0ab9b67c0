"""A picture is shown, or saved where a line says."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageShow

from dinov3seg_jax import screen

PICTURE = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(4, 5, 3))


@pytest.mark.parametrize(("display", "viewer"), [("", True), (":0", False)])
def test_without_a_screen_the_picture_is_saved(monkeypatch, capsys, display, viewer):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setattr(ImageShow, "show", lambda picture: viewer)
    screen.show(PICTURE)
    path = Path(capsys.readouterr().out.strip().removeprefix("there is no display; the picture is in "))
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(PICTURE))


def test_with_a_screen_it_is_shown(monkeypatch, capsys):
    shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(ImageShow, "show", lambda picture: shown.append(picture) or True)
    screen.show(PICTURE)
    assert shown == [PICTURE]
    assert capsys.readouterr().out == ""


def test_in_a_notebook_it_is_shown_below_the_cell(monkeypatch):
    shown = []
    kernel = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: kernel))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=shown.append))
    screen.show(PICTURE)
    assert shown == [PICTURE]
