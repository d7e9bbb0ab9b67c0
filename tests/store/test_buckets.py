"""Converted weights and exported folders in buckets."""

import numpy as np
import pytest

from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.convert.run import _put_in_place
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.export.writer import write_new_folder
from dinov3seg_jax.folders import copy_tree, files_below
from dinov3seg_jax.places import place
from dinov3seg_jax.store.converted import WEIGHTS_FILE
from dinov3seg_jax.store.folder import open_folder
from tests.converted import write_folder

ARRAYS = {"vision/backbone/norm/scale": np.arange(4, dtype=np.float32)}


def test_converted_weights_are_read_from_a_bucket(tmp_path, bucket):
    write_folder(tmp_path / "weights", ARRAYS, "dinov3", ModelConfig())
    there = place(f"{bucket}/weights")
    copy_tree(tmp_path / "weights", there)
    here, folder = open_folder(tmp_path / "weights"), open_folder(str(there))
    assert folder.kind == "converted"
    assert folder.path == there  # where its scores go
    assert (folder.manifest, folder.fingerprint) == (here.manifest, here.fingerprint)
    np.testing.assert_array_equal(folder.arrays()["vision/backbone/norm/scale"], np.arange(4))
    (there / WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match=r"weights.safetensors' cannot be read \(No such file"):
        open_folder(str(there)).arrays()


def test_a_conversion_replaces_an_earlier_one(tmp_path, s3, s3_faults):
    there = place(f"{s3}/weights")
    for number in range(2):
        folder = tmp_path / str(number)
        write_folder(folder, {name: array + number for name, array in ARRAYS.items()}, "dinov3", ModelConfig())
        s3_faults.seen.clear()
        _put_in_place(folder, there)
    changes = [(method, path.rpartition("/")[2].partition("?")[0]) for method, path in s3_faults.seen]
    changes = [(method, name) for method, name in changes if method in ("PUT", "DELETE")]
    assert changes == [("DELETE", "manifest.json"), ("PUT", "weights.safetensors"), ("PUT", "manifest.json")]
    np.testing.assert_array_equal(open_folder(str(there)).arrays()["vision/backbone/norm/scale"], np.arange(4) + 1)


def test_an_export_is_whole_or_not_there(s3, s3_faults):
    out = place(f"{s3}/exported")

    def write(folder):
        (folder / "export.json").write_text("{}")
        (folder / "weights.npz").write_bytes(b"1")

    write_new_folder(out, write, "export.json")
    assert [path.name for path in files_below(out).values()] == ["export.json", "weights.npz"]
    s3_faults.answer(403, name="weights.npz", writes=True)
    with pytest.raises(UserError, match="cannot be written"):
        write_new_folder(place(f"{s3}/other"), write, "export.json")
    assert not place(f"{s3}/other/export.json").exists()
