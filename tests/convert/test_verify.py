"""`python -m convert verify`: right conversions pass, and whatever is wrong with one is found and said."""

import io
import json
import re

import numpy as np
import pytest

from convert.__main__ import main
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.store import safetensors
from dinov3seg_jax.store.converted import MANIFEST_FILE, WEIGHTS_FILE
from tests.convert.files import FIXTURES, official, save
from tests.parity.official import arrays

VIT, HUGGING, TXT, SAM, ANYUP = (
    "vit_tiny_untied_zeromask",
    "hf_vit_tiny_mlp",
    "dinotxt_tiny",
    "sam_image_encoder",
    "anyup",
)
KINDS = {VIT: "dinov3", HUGGING: "dinov3", TXT: "dinotxt", SAM: "sam", ANYUP: "anyup"}
HEADS = {
    HUGGING: ["--config.vision.heads=2"],
    TXT: ["--config.text.heads=4"],
    ANYUP: ["--config.early.heads=2"],
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """`converted(fixture)` -> (its weights as official file, the folder made of it)."""
    made = {}

    def convert(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            source = save(folder / "weights.safetensors", official(name))
            arguments = [KINDS[name], "--source", str(source), "--out", str(folder / "out"), *HEADS.get(name, [])]
            assert main(arguments) == 0
            made[name] = source, folder / "out"
        return made[name]

    return convert


def verify(folder, *more):
    return main(["verify", str(folder), *map(str, more)])


def one_case(name, case, *outputs):
    """A part of a fixture, as a user would make it."""
    values = arrays(FIXTURES / f"{name}.npz")
    chosen = {key: value for key, value in values.items() if key.startswith(f"in/{case}/")}
    return chosen | {f"out/{case}/{output}": values[f"out/{case}/{output}"] for output in outputs}


def sam_case():
    values = arrays(FIXTURES / f"{SAM}.npz")
    return {"in/a/image": values["in/image"], "out/a/embedding": values["out/embedding"]}


def anyup_case():
    values = arrays(FIXTURES / f"{ANYUP}.npz")
    inputs = {f"in/a/{name}": values[f"in/{name}"] for name in ("image", "features")}
    return inputs | {"out/a/upsampled": values["image_size/out/features"]}


CASES = {
    "official": (
        VIT,
        lambda: one_case(VIT, "sq64", "x_norm_clstoken", "x_norm_patchtokens", "block0_out", "layer1_cls"),
    ),
    "hugging_face": (HUGGING, lambda: one_case(HUGGING, "r48x96", "last_hidden_state", "pooler_output")),
    "head": (TXT, lambda: one_case(TXT, "sq64", "head_class_token", "head_patch_tokens", "features", "features_norm")),
    "text": (TXT, lambda: one_case(TXT, "text", "features", "features_norm")),
    "sam": (SAM, sam_case),
    "anyup": (ANYUP, anyup_case),
}


def archive(path, values):
    np.savez(path, **values)
    return path


QUICK = ("official", "head", "text")  # the others take seconds to compile


@pytest.mark.parametrize("kind", [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in CASES])
def test_a_right_conversion_passes(converted, tmp_path, capsys, kind):
    fixture, make = CASES[kind]
    values = make()
    _, folder = converted(fixture)
    assert verify(folder, "--against", archive(tmp_path / "a.npz", values)) == 0
    printed = capsys.readouterr().out
    for key in values:
        if key.startswith("out/"):
            assert re.search(rf"^{key.removeprefix('out/')} .*e-0\d .* ok$", printed, re.MULTILINE)
    assert "not compared" not in printed
    assert printed.endswith("passed\n")


@pytest.mark.slow
def test_every_output_of_a_shared_fixture_that_has_a_name_here_is_compared(converted, capsys):
    _, folder = converted(VIT)
    assert verify(folder, "--against", FIXTURES / f"{VIT}.npz") == 0
    printed = capsys.readouterr().out
    assert printed.count(" ok\n") == 2 * 13
    assert "not compared, as these folders have no such output: sq64/rope_sin" in printed


@pytest.fixture
def exact(monkeypatch):
    """Our outputs are those recorded, without a model that has to be compiled."""
    values = arrays(FIXTURES / f"{VIT}.npz")
    recorded = {key.removeprefix("out/sq64/"): value for key, value in values.items() if key.startswith("out/sq64/")}
    monkeypatch.setattr("dinov3seg_jax.convert.verify.compute", lambda config, parameters, inputs, wanted: recorded)


@pytest.mark.usefixtures("exact")
def test_an_error_above_the_tolerance_fails(converted, tmp_path, capsys):
    _, folder = converted(VIT)
    values = one_case(VIT, "sq64", "x_norm_clstoken", "x_norm_patchtokens")
    values["out/sq64/x_norm_clstoken"][0, 3] += 0.01
    path = archive(tmp_path / "a.npz", values)
    assert verify(folder, "--against", path) == 1
    printed = capsys.readouterr().out
    assert re.search(r"x_norm_clstoken .* 1\.0e-02 .* FAILED", printed)
    assert re.search(r"x_norm_patchtokens .* ok", printed)
    assert printed.endswith("FAILED\n")
    assert verify(folder, "--against", path, "--tolerance", "0.02") == 0


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("wrong", [np.nan, None])
def test_a_nan_or_another_shape_never_passes(converted, tmp_path, wrong):
    _, folder = converted(VIT)
    values = one_case(VIT, "sq64", "x_norm_clstoken")
    expected = values["out/sq64/x_norm_clstoken"]
    values["out/sq64/x_norm_clstoken"] = expected[:1] if wrong is None else expected * wrong
    assert verify(folder, "--against", archive(tmp_path / "a.npz", values), "--tolerance", "1e9") == 1


def tampered(folder, target, name, *, manifest_too):
    """A copy of a converted folder with one value of an array changed."""
    target.mkdir()
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    entry = safetensors.read_header(folder / WEIGHTS_FILE)[name]
    values = np.frombuffer(content, np.float32, entry.size // 4, entry.start)
    values[0] += 0.5
    (target / WEIGHTS_FILE).write_bytes(content)
    manifest = json.loads((folder / MANIFEST_FILE).read_bytes())
    if manifest_too:
        from dinov3seg_jax.convert.run import array_sha256

        manifest["arrays"][name]["sha256"] = array_sha256(target / WEIGHTS_FILE, entry)
    (target / MANIFEST_FILE).write_text(json.dumps(manifest))
    return target


@pytest.mark.parametrize("name", ["vision/backbone/norm/scale", "vision/backbone/blocks/attention/value/kernel"])
def test_a_tampered_folder_is_found_out_three_ways(converted, tmp_path, capsys, name):
    source, folder = converted(VIT)
    assert verify(tampered(folder, tmp_path / "a", name, manifest_too=False)) == 1
    assert f"changed since the conversion: {name}\n" in capsys.readouterr().out

    hidden = tampered(folder, tmp_path / "b", name, manifest_too=True)
    assert verify(hidden) == 0
    capsys.readouterr()
    assert verify(hidden, "--source", source) == 1
    printed = capsys.readouterr().out
    total = len(safetensors.read_header(folder / WEIGHTS_FILE))
    assert f"{total - 1} of {total} arrays are those of the source, bit for bit:" in printed
    assert re.search(rf"{name} .* 5\.0e-01 .* FAILED", printed)

    path = archive(tmp_path / "a.npz", one_case(VIT, "sq64", "x_norm_patchtokens"))
    if name.endswith("scale"):  # once is enough: compiling takes seconds
        assert verify(hidden, "--against", path) == 1


@pytest.mark.parametrize("fixture", KINDS)
def test_the_source_is_equal_bit_for_bit(converted, capsys, fixture):
    source, folder = converted(fixture)
    assert verify(folder, "--source", source) == 0
    assert re.search(r"(\d+) of \1 arrays are those of the source, bit for bit\n", capsys.readouterr().out)


def test_periods_are_those_of_the_conversion(converted):
    source, folder = converted(HUGGING)
    assert verify(folder, "--source", source, "--rounded_periods") == 1


def test_another_source_is_refused(converted, tmp_path):
    _, folder = converted(VIT)
    with pytest.raises(UserError, match="hold different arrays, such as"):
        verify(folder, "--source", save(tmp_path / "b.safetensors", official("vit_tiny_7bstyle")))
    with pytest.raises(UserError, match="run dinov3seg convert sam"):
        verify(folder, "--source", converted(SAM)[0])


@pytest.mark.slow
def test_parts_of_a_model_are_compared_together(converted, tmp_path):
    state = official(TXT)
    inner = "visual_model.backbone."
    files = {
        "dinov3": {key.removeprefix(inner): value for key, value in state.items() if key.startswith(inner)},
        "dinotxt": {key: value for key, value in state.items() if not key.startswith(inner)},
    }
    heads = {"dinov3": [], "dinotxt": ["--config.text.heads=4", "--config.vision.heads=4"]}
    for kind, tensors in files.items():
        source = save(tmp_path / f"{kind}.safetensors", tensors)
        main([kind, "--source", str(source), "--out", str(tmp_path / kind), *heads[kind]])
    path = archive(tmp_path / "a.npz", one_case(TXT, "r48x96", "head_patch_tokens"))
    with pytest.raises(UserError, match="none of the outputs"):
        verify(tmp_path / "dinov3", "--against", path)
    assert verify(tmp_path / "dinov3", tmp_path / "dinotxt", "--against", path) == 0


def packed(**values):
    buffer = io.BytesIO()
    np.savez(buffer, **{key.replace("__", "/"): value for key, value in values.items()})
    return buffer.getvalue()


IMAGE, CLS = np.zeros((1, 3, 32, 32), np.float32), np.zeros((1, 32), np.float32)
BAD = {
    "no archive": (b"not an archive", "is no .npz file of plain arrays"),
    "truncated": (packed(in__a__image=IMAGE)[:-30], "is no .npz file of plain arrays"),
    "code": (packed(in__a__image=np.array([print])), "is no .npz file of plain arrays"),
    "one array": (b"\x93NUMPY", "is no .npz file of plain arrays"),
    "no outputs": (packed(in__a__image=IMAGE), "holds no case"),
    "no inputs": (packed(out__a__x_norm_clstoken=CLS), "holds no case"),
    "bytes": (packed(in__a__image=IMAGE.astype(np.uint8), out__a__x=CLS), r"uint8 \[1, 3, 32, 32\]; give \[b, 3, "),
    "channels last": (packed(in__a__image=IMAGE.reshape(1, 32, 32, 3), out__a__x=CLS), "give"),
    "infinite": (packed(in__a__image=IMAGE + np.inf, out__a__x=CLS), "all finite"),
    "unknown output": (
        packed(in__a__image=IMAGE, out__a__nonsense=CLS),
        "none of the outputs is one of vision/backbone",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_a_sentence(converted, tmp_path, case):
    content, message = BAD[case]
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        verify(converted(VIT)[1], "--against", path)


def test_other_bad_arguments(converted, tmp_path):
    source, folder = converted(VIT)
    with pytest.raises(UserError, match="no .npz file of plain arrays .*No such file"):
        verify(folder, "--against", tmp_path / "absent.npz")
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(UserError, match="is no .npz file of plain arrays"):
        verify(folder, "--against", tmp_path / "a.npy")
    with pytest.raises(UserError, match="one by one"):
        verify(folder, folder, "--source", source)
    with pytest.raises(UserError, match="holds no converted weights"):
        verify(tmp_path)
    with pytest.raises(UserError, match="tolerance nan"):
        verify(folder, "--tolerance", "nan")
    tokens = np.full((1, 78), 5)
    with pytest.raises(UserError, match="rows of 78 ids from 5 to 5; the text tower takes up to 77"):
        verify(
            converted(TXT)[1], "--against", archive(tmp_path / "a.npz", {"in/t/tokens": tokens, "out/t/features": CLS})
        )


def test_a_manifest_of_other_arrays(converted, tmp_path):
    _, folder = converted(VIT)
    manifest = json.loads((folder / MANIFEST_FILE).read_bytes())
    del manifest["arrays"]["vision/backbone/norm/scale"]
    (tmp_path / MANIFEST_FILE).write_text(json.dumps(manifest))
    (tmp_path / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes())
    with pytest.raises(UserError, match="disagree on 'vision/backbone/norm/scale'; convert again"):
        verify(tmp_path)
