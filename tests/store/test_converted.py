"""Converted folders: what is written comes back, wholly or in slices, and what does not fit is one sentence."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dinov3seg_jax.config import ModelConfig, TextConfig, VisionConfig
from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.store import safetensors
from dinov3seg_jax.store.converted import (
    WEIGHTS_FILE,
    Manifest,
    is_converted,
    model_config,
    read_arrays,
    read_manifest,
    refuse_other_model,
    write_manifest,
)

ARRAYS = {
    "vision/backbone/norm/scale": np.arange(6, dtype=np.float32),
    "vision/backbone/blocks/kernel": np.arange(48, dtype=np.float32).reshape(2, 4, 6),
    "text/logit_scale": np.full(1, 2.5, np.float32),
    "vision/backbone/storage_tokens": np.zeros((0, 6), np.float32),
}
BACKBONE = {"dim": 32, "depth": 2, "heads": 4, "head_blocks": 0}


def manifest(arrays=None, **model):
    shapes = {name: {"shape": list(value.shape), "sha256": ""} for name, value in (arrays or {}).items()}
    return Manifest("dinov3", "custom", 1, [{"name": "a.pth", "sha256": "ab"}], [], model, shapes)


def write(folder: Path) -> Path:
    folder.mkdir()
    entries = safetensors.create(folder / WEIGHTS_FILE, {name: value.shape for name, value in ARRAYS.items()})
    with (folder / WEIGHTS_FILE).open("r+b") as file:
        for name, value in ARRAYS.items():
            for position in reversed(range(len(value))):
                safetensors.write_part(file, entries[name], position, value[position])
    write_manifest(folder, manifest(ARRAYS, vision=BACKBONE))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "converted")


def test_arrays_come_back(folder):
    arrays = read_arrays(folder)
    assert arrays.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], value)
        assert arrays[name].dtype == np.float32
    assert read_arrays(folder, ["text/logit_scale"]).keys() == {"text/logit_scale"}


def test_other_programs_can_read_the_file(folder):
    library = pytest.importorskip("safetensors.numpy")
    for name, value in library.load_file(folder / WEIGHTS_FILE).items():
        np.testing.assert_array_equal(value, ARRAYS[name])


def test_the_manifest_comes_back(folder, tmp_path):
    assert read_manifest(folder) == manifest(ARRAYS, vision=BACKBONE)
    assert is_converted(folder)
    assert not is_converted(tmp_path)


def test_a_changed_file_does_not_change_arrays_in_memory(folder):
    arrays = read_arrays(folder)
    (folder / WEIGHTS_FILE).write_bytes(bytes((folder / WEIGHTS_FILE).stat().st_size))
    np.testing.assert_array_equal(arrays["text/logit_scale"], [2.5])


SHARDED = """
import sys
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from dinov3seg_jax.store import converted

touched = []
place = converted.safetensors.map_tensor

class Watched(np.ndarray):
    def __getitem__(self, index):
        part = np.asarray(self)[index]
        touched.append(part.size)
        return part

converted.safetensors.map_tensor = lambda path, entry: place(path, entry).view(Watched)
mesh = jax.make_mesh((2, 2), ("data", "model"))
name = "vision/backbone/blocks/kernel"
for spec, sizes in [(P(None, "data", "model"), [12] * 4), (P(None, None, "model"), [24] * 2), (P(), [48])]:
    touched.clear()
    array = converted.read_arrays(sys.argv[1], [name], {name: NamedSharding(mesh, spec)})[name]
    np.testing.assert_array_equal(array, np.arange(48, dtype=np.float32).reshape(2, 4, 6))
    assert array.sharding.spec == spec
    assert touched == sizes, touched
"""


def test_each_device_reads_its_own_slice_once(folder):
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, str(folder)], capture_output=True, text=True, env=environment, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr


def damage_manifest(folder):
    (folder / "manifest.json").write_text('{"kind": ')


def make_manifest_lie(folder):
    content = json.loads((folder / "manifest.json").read_text())
    content["arrays"]["text/logit_scale"]["shape"] = [2]
    (folder / "manifest.json").write_text(json.dumps(content))


def remove_manifest(folder):
    (folder / "manifest.json").unlink()


def remove_weights(folder):
    (folder / WEIGHTS_FILE).unlink()


def truncate_weights(folder):
    (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_manifest, "manifest.json is damaged"),
        (make_manifest_lie, "does not hold what manifest.json says"),
        (remove_manifest, "holds no converted weights"),
        (remove_weights, "cannot be read (No such file or directory)"),
        (truncate_weights, "is damaged or no .safetensors file"),
    ],
)
def test_damaged_folders(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError) as caught:
        read_arrays(folder)
    assert message in str(caught.value)


def test_a_name_that_is_not_there(folder):
    with pytest.raises(UserError, match="holds no 'sam/x'; it has the parts text, vision/backbone"):
        read_arrays(folder, ["sam/x"])


def test_parts_make_one_model():
    head = manifest(vision={"dim": 32, "heads": 4, "head_blocks": 1}, text={"dim": 16})
    backbone = manifest(vision=BACKBONE)
    for both in ((head, backbone), (backbone, head)):
        model = model_config(*both)
        assert model.vision == VisionConfig(dim=32, depth=2, heads=4, head_blocks=1)
        assert model.text == TextConfig(dim=16)
    assert model_config(backbone).vision.head_blocks == 0
    assert model_config() == ModelConfig()


def test_parts_of_two_models():
    with pytest.raises(UserError, match=r"vision.dim is 32 in one and 64 in another"):
        model_config(manifest(vision=BACKBONE), manifest(vision={"dim": 64}))


def described(**shapes):
    return {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("model", "expected", "message"),
    [
        (
            {"heads": 2},
            {"a": (6,)},
            "was converted with model.vision.heads=4, not 2; set --config.model.vision.heads=4",
        ),
        ({}, {"a": (7,)}, r"holds 'a' with shape \[6\], and config.model needs \[7\]"),
        ({}, {"b": (6,)}, "holds 'a', which config.model has no place for"),
    ],
)
def test_parts_of_another_model_are_refused(model, expected, message):
    converted = manifest({"a": np.zeros(6)}, vision=BACKBONE)
    vision = dataclasses.replace(VisionConfig(dim=32, depth=2, heads=4, head_blocks=2), **model)
    with pytest.raises(UserError, match=message):
        refuse_other_model("folder", converted, ModelConfig(vision=vision), described(**expected))


def test_all_options_that_weights_are_for_are_named_in_one_sentence():
    """As for AnyUp's, which early refinement takes together; what is told can be pasted."""
    early = {"enabled": True, "unification": "official", "kernels": [1, 3, 1], "locality": 0.0}
    with pytest.raises(UserError) as caught:
        refuse_other_model("weights/anyup", manifest(early=early), ModelConfig(), {})
    assert str(caught.value) == (
        "'weights/anyup' was converted with model.early.unification='official', not 'per_channel', and "
        "model.early.kernels=(1, 3, 1), not (1, 1, 1), and model.early.locality=0.0, not 4.0; set "
        "--config.model.early.unification=official --config.model.early.kernels=1,3,1 "
        "--config.model.early.locality=0.0 together."
    )
    overrides = [word.removeprefix("--config.") for word in str(caught.value).split(" set ")[1].split()[:-1]]
    refuse_other_model("", manifest(early=early), load_config("coco_stuff", overrides).model, {})


def test_a_backbone_alone_fits_a_model_with_a_head():
    vision = VisionConfig(dim=32, depth=2, heads=4, head_blocks=2)
    refuse_other_model("", manifest({"a": np.zeros(6)}, vision=BACKBONE), ModelConfig(vision=vision), described(a=(6,)))
