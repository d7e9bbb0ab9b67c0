"""What a folder holds is told in one place, from its own files alone, and without JAX."""

import subprocess
import sys

import numpy as np
import pytest

from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import EXPORT_FILE
from dinov3seg_jax.inference.load import section_of, way_of
from dinov3seg_jax.store.folder import load_parameters, open_folder
from dinov3seg_jax.store.run import write_config
from tests.converted import write_folder
from tests.tiny import MODEL

ARRAYS = {"text/one": np.ones((2, 3), np.float32), "vision/two": np.zeros(4, np.float32)}

WITHOUT_JAX = """
import sys
from dinov3seg_jax.inference.load import way_of
from dinov3seg_jax.store.folder import open_folder
for path in sys.argv[1:]:
    folder = open_folder(path)
    print(folder.kind, way_of(folder), folder.config.seed, folder.fingerprint, len(folder.checksums), folder.files())
heavy = {"jax", "flax", "orbax", "tensorstore"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.fixture
def run(tmp_path):
    write_config(tmp_path / "run", Config(model=MODEL, seed=3))
    return tmp_path / "run"


@pytest.fixture
def converted(tmp_path):
    write_folder(tmp_path / "towers", ARRAYS, "dinotxt", MODEL)
    return tmp_path / "towers"


def test_what_each_folder_is(run, converted, tmp_path):
    write_folder(tmp_path / "head", {"linear/kernel": np.ones(3, np.float32)}, "linear", MODEL)
    said = {path.name: (open_folder(path).kind, way_of(open_folder(path))) for path in (run, converted)}
    assert said == {"run": ("run", "run"), "towers": ("converted", "zero_shot")}
    assert way_of(open_folder(tmp_path / "head")) == "linear"
    assert [way_of(open_folder(path), zero_shot=True) for path in (run, converted)] == ["zero_shot", "zero_shot"]
    assert (section_of("run"), section_of("linear"), section_of("zero_shot")) == ("inference", "inference", "zero_shot")


def test_jax_is_not_loaded_to_tell(run, converted):
    done = subprocess.run([sys.executable, "-c", WITHOUT_JAX, run, converted], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split()[:3] for line in done.stdout.splitlines()] == [
        ["run", "run", "3"],
        ["converted", "zero_shot", "0"],
    ]


def test_parts_of_converted_weights(converted):
    folder = open_folder(converted)
    assert folder.checksums.keys() == ARRAYS.keys()
    assert list(folder.arrays(("text/",))) == ["text/one"]
    config, arrays = load_parameters(converted)
    assert config.model.text == MODEL.text
    assert arrays.keys() == ARRAYS.keys()


def test_other_weights_have_another_fingerprint(converted, tmp_path):
    write_folder(tmp_path / "others", {name: value + 1 for name, value in ARRAYS.items()}, "dinotxt", MODEL)
    first, second = open_folder(converted).fingerprint, open_folder(tmp_path / "others").fingerprint
    assert first != second
    assert open_folder(tmp_path / "absent").fingerprint not in (first, second)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[]", "it holds no options"),
        ("null", "no options"),
        ("3", "no options"),
        ('"seed"', "no options"),
        ("[" * 10**5, ""),
    ],
    ids=["list", "null", "number", "text", "deep"],
)
def test_a_config_that_is_another_json_file(tmp_path, content, why):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=rf"config.json is damaged \(.*{why}.*\); restore it or train again"):
        open_folder(tmp_path).config  # noqa: B018


@pytest.mark.parametrize("option", ["model_type", "architectures", "architecture"])
def test_a_model_of_another_program(tmp_path, option):
    (tmp_path / "config.json").write_text(f'{{"{option}": "dinov3"}}')
    with pytest.raises(UserError, match="holds a model of another program; name what `dinov3seg convert` made of it"):
        open_folder(tmp_path).config  # noqa: B018


def test_a_name_that_no_folder_can_have():
    with pytest.raises(UserError, match=r"'x{100}' cannot be read \(File name too long\); check the path"):
        open_folder("x" * 1000)


def test_an_exported_model_is_known_and_says_what_reads_it(tmp_path):
    (tmp_path / EXPORT_FILE).write_text("{}")
    with pytest.raises(UserError, match="holds an exported model, which dinov3seg_jax.load_exported reads"):
        open_folder(tmp_path)
