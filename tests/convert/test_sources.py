"""Keys under names that training puts before them: one set of weights is read, or it is asked which."""

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convert.__main__ import main
from dinov3seg_jax.convert.run import prepare
from dinov3seg_jax.convert.sources import WRAPPERS, open_source
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.store.converted import read_arrays, read_manifest
from tests.convert.files import LAYOUTS, official, save
from tests.convert.test_recognise import described


@pytest.fixture
def tiny():
    return official("vit_tiny_mlp")


def under(start, tensors, add=0.0):
    return {f"{start}{key}": value + value.dtype.type(add) for key, value in tensors.items()}


def convert(source, out, *more):
    assert main(["dinov3", "--source", str(source), "--out", str(out), *more]) == 0
    return read_manifest(out)


def refused(source, *more):
    with pytest.raises(UserError) as caught:
        main(["dinov3", "--source", str(source), "--out", str(source.parent / "out"), *more])
    assert not (source.parent / "out").exists()
    return str(caught.value)


@given(st.lists(st.sampled_from(WRAPPERS), max_size=4).map(lambda names: "".join(f"{name}." for name in names)))
@settings(max_examples=20, deadline=None)
def test_any_nesting_of_wrappers_is_stripped(start):
    recognised, plan = prepare(described(under_shapes(start, "vits16")), "dinov3")
    assert recognised.name == "vits16"
    assert len(plan.readings) == len(LAYOUTS["vits16"]) - 12  # masks are used up with their biases


def under_shapes(start, layout):
    return {start + key: shape for key, shape in LAYOUTS[layout].items()}


def test_no_release_has_a_key_that_looks_wrapped_in_more_than_its_own(tmp_path):
    for layout, shapes in LAYOUTS.items():
        first = {key.split(".")[0] for key in shapes}
        assert not first & (set(WRAPPERS) - {"model", "backbone"}), layout


@pytest.mark.parametrize("start", ["ema.", "_orig_mod.", "module.student.", "pretrained.model."])
def test_what_was_stripped_is_said_where_releases_have_none(tmp_path, tiny, start):
    manifest = convert(save(tmp_path / "a.safetensors", under(start, tiny)), tmp_path / "out")
    assert manifest.notes == [f"the weights of 'a.safetensors' are those under '{start}'"]
    plain = convert(save(tmp_path / "b.safetensors", tiny), tmp_path / "plain")
    assert (manifest.arrays, manifest.model) == (plain.arrays, plain.model)
    wrapped = convert(save(tmp_path / "c.safetensors", under("teacher.backbone.", tiny)), tmp_path / "wrapped")
    assert wrapped.notes == []


@pytest.mark.parametrize(
    ("one", "two"), [("model.", "ema."), ("model.", "model_ema.module."), ("", "ema."), ("student.", "ema.student.")]
)
def test_of_two_sets_neither_is_read_in_silence(tmp_path, tiny, one, two):
    source = save(tmp_path / "a.safetensors", under(one, tiny) | under(two, tiny, 1))
    message = refused(source)
    assert "holds 2 sets of weights" in message
    assert all((f"under '{start}'" if start else "under nothing") in message for start in (one, two))
    for start, add in ((one, 0), (two, 1)):
        manifest = convert(source, tmp_path / "out", "--take", start.removesuffix(".") or ".")
        bias = read_arrays(tmp_path / "out")["vision/backbone/norm/bias"]
        assert (bias == tiny["norm.bias"] + tiny["norm.bias"].dtype.type(add)).all()
        assert manifest.notes[-1].startswith("the weights of 'a.safetensors' are those under")
        assert any(note.startswith("left out of the training checkpoint: ") for note in manifest.notes)


def test_of_student_and_teacher_the_teacher_is_read_and_the_student_named(tmp_path, tiny):
    heads = {f"{name}.dino_head.mlp.0.weight": tiny["norm.bias"] for name in ("student", "teacher")}
    both = under("teacher.backbone.", tiny) | under("student.backbone.", tiny, 1) | heads
    manifest = convert(save(tmp_path / "a.safetensors", both), tmp_path / "out")
    assert (read_arrays(tmp_path / "out")["vision/backbone/norm/bias"] == tiny["norm.bias"]).all()
    assert manifest.notes == ["left out of the training checkpoint: student, student.backbone"]
    convert(tmp_path / "a.safetensors", tmp_path / "out", "--take", "student")
    assert (read_arrays(tmp_path / "out")["vision/backbone/norm/bias"] == tiny["norm.bias"] + 1).all()


def test_two_teachers_are_asked_about(tmp_path, tiny):
    both = under("teacher.", tiny) | under("ema.teacher.", tiny, 1)
    assert "under 'ema.teacher.' and under 'teacher.'" in refused(save(tmp_path / "a.safetensors", both))


def test_an_unknown_start_is_named_and_can_be_taken(tmp_path, tiny):
    source = save(tmp_path / "a.safetensors", under("visual.tower.", tiny))
    assert "seems to hold a DINOv3 backbone under 'visual.tower.'; if so, add --take visual.tower" in refused(source)
    manifest = convert(source, tmp_path / "out", "--take", "visual.tower.")
    assert manifest.arrays == convert(save(tmp_path / "b.safetensors", tiny), tmp_path / "plain").arrays


def test_a_choice_may_stand_below_wrappers_but_once(tmp_path, tiny):
    deep = under("state_dict.ema.", tiny, 1) | under("state_dict.model.", tiny)
    convert(save(tmp_path / "a.safetensors", deep), tmp_path / "out", "--take", "ema")
    assert (read_arrays(tmp_path / "out")["vision/backbone/norm/bias"] == tiny["norm.bias"] + 1).all()
    (tmp_path / "twice").mkdir()
    twice = save(tmp_path / "twice" / "a.safetensors", under("model.ema.", tiny) | under("module.ema.", tiny))
    assert "say --take model.ema or --take module.ema" in refused(twice, "--take", "ema")


def test_a_choice_that_no_file_has_is_refused(tmp_path, tiny):
    source = save(tmp_path / "a.safetensors", under("model.", tiny))
    assert "is under 'ema'; its keys begin with model" in refused(source, "--take", "ema")


def test_a_choice_leaves_files_without_it_whole(tmp_path):
    source = official("dinotxt_tiny")
    prefix = "visual_model.backbone."
    backbone = {key.removeprefix(prefix): value for key, value in source.items() if key.startswith(prefix)}
    rest = {key: value for key, value in source.items() if not key.startswith(prefix)}
    two = under("ema.", backbone) | under("model.", backbone, 1)
    files = [save(tmp_path / "backbone.safetensors", two), save(tmp_path / "rest.safetensors", rest)]
    found = open_source(files, "ema")
    assert found.tensors.keys() == backbone.keys() | rest.keys()
    assert found.left_out == ("model",)


def test_verify_takes_the_same_choice(tmp_path, tiny, capsys):
    source = save(tmp_path / "a.safetensors", under("model.", tiny) | under("ema.", tiny, 1))
    convert(source, tmp_path / "out", "--take", "ema")
    arguments = ["verify", str(tmp_path / "out"), "--source", str(source), "--take"]
    assert [main([*arguments, name]) for name in ("ema", "model")] == [0, 1]


@pytest.mark.parametrize("names", list(itertools.permutations(["model", "ema", "optimizer"])))
def test_entries_of_a_torch_file_count_alike(tmp_path, tiny, names):
    torch = pytest.importorskip("torch")
    weights = {key: torch.from_numpy(value) for key, value in tiny.items()}
    entries = {"model": weights, "ema": {"module": weights}, "optimizer": {"state": {0: weights}}}
    torch.save({name: entries[name] for name in names}, tmp_path / "a.pth")
    assert "under 'ema.module.' and under 'model.'" in refused(tmp_path / "a.pth")
    manifest = convert(tmp_path / "a.pth", tmp_path / "out", "--take", "ema.module")
    assert manifest.notes[0] == "left out of the training checkpoint: optimizer, model"


def test_shards_of_an_index_are_one_file(tmp_path, tiny):
    both = under("model.", tiny) | under("ema.", tiny, 1)
    names = {key: f"model-0000{1 + key.startswith('ema.')}-of-00002.safetensors" for key in both}
    for name in set(names.values()):
        save(tmp_path / name, {key: value for key, value in both.items() if names[key] == name})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert "under 'ema.' and under 'model.'" in refused(index)
    manifest = convert(index, tmp_path / "out", "--take", "ema")
    assert (read_arrays(tmp_path / "out")["vision/backbone/norm/bias"] == tiny["norm.bias"] + 1).all()
    assert len(manifest.sources) == 3
