"""A run's record; what a run does with it is in test_folder_runs."""

import pytest

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.pictures.finished import Picture, begin


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="out cannot be written .*; choose another --out"):
        begin(tmp_path / "out", {"names": ["a"]}, [Picture(tmp_path / "a.png", tmp_path / "out" / "a")])
