"""Files of torch.save, where torch is installed: plain weights are read, and nothing else is run."""

import os
import pickle

import numpy as np
import pytest

from convert.__main__ import main
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.store.converted import read_arrays, read_manifest
from tests.convert.files import official, save

torch = pytest.importorskip("torch")


@pytest.fixture
def weights():
    return {key: torch.from_numpy(value) for key, value in official("vit_tiny_mlp").items()}


def convert(source, out):
    return main(["dinov3", "--source", str(source), "--out", str(out)])


def refused(folder, source):
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError) as caught:
        convert(source, folder / "out")
    assert sorted(folder.rglob("*")) == before
    return str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"teacher": {f"module.backbone.{key}": value for key, value in weights.items()}, "epoch": 3},
        lambda weights: {"model": {"state_dict": weights}, "optimizer": {"lr": 0.1}},
    ],
    ids=["plain", "teacher", "nested"],
)
def test_the_same_arrays_as_from_safetensors(tmp_path, weights, zipped, wrap):
    torch.save(wrap(weights), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    convert(tmp_path / "a.pth", tmp_path / "one")
    convert(save(tmp_path / "a.safetensors", official("vit_tiny_mlp")), tmp_path / "two")
    one, two = (read_manifest(tmp_path / name) for name in ("one", "two"))
    assert (one.arrays, one.model) == (two.arrays, two.model)


def test_bfloat16_and_views(tmp_path, weights):
    weights["norm.weight"] = weights["norm.weight"].bfloat16()
    weights["norm.bias"] = torch.arange(128.0)[::2]
    torch.save(weights, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "out")
    arrays = read_arrays(tmp_path / "out")
    np.testing.assert_array_equal(arrays["vision/backbone/norm/scale"], weights["norm.weight"].float().numpy())
    np.testing.assert_array_equal(arrays["vision/backbone/norm/bias"], np.arange(0, 128, 2))


class Code:
    """What a pickle would run."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize(
    "write",
    [
        torch.save,
        lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
        lambda value, path: path.write_bytes(pickle.dumps(value)),
        lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2)),
    ],
    ids=["zip", "old", "pickle", "old pickle"],
)
def test_code_is_refused_and_not_run(tmp_path, write):
    trace, source = tmp_path / "trace", tmp_path / "a.pth"
    write({"cls_token": Code(trace)}, source)
    assert "holds more than plain weights" in refused(tmp_path, source)
    assert not trace.exists()
    if source.read_bytes().startswith(b"PK"):
        torch.load(source, weights_only=False)
        assert trace.exists()  # it would have run


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_file(tmp_path, weights, share):
    source = tmp_path / "a.pth"
    torch.save(weights, source)
    source.write_bytes(source.read_bytes()[: int(share * source.stat().st_size)])
    assert "is damaged, truncated" in refused(tmp_path, source)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({}, "holds a dict, not a state dict"),
        ({"cls_token": 3}, "holds 'cls_token', which is no plain tensor"),
        ({"cls_token": torch.ones(3).to_sparse()}, "holds 'cls_token', which is no plain tensor"),
    ],
)
def test_no_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth")
    assert message in refused(tmp_path, tmp_path / "a.pth")


def test_a_pth_named_safetensors(tmp_path, weights):
    torch.save(weights, tmp_path / "a.safetensors")
    assert "is a PyTorch file under another name" in refused(tmp_path, tmp_path / "a.safetensors")


def test_a_checksum_that_differs_from_the_name_is_noted(tmp_path, weights, capsys):
    source = tmp_path / "dinov3_vits16_pretrain_lvd1689m-08c60483.pth"
    torch.save(weights, source)
    convert(source, tmp_path / "out")
    assert "begins with 08c60483" in read_manifest(tmp_path / "out").notes[0]
    assert "note: the name of" in capsys.readouterr().err


def test_integers_are_no_weights(tmp_path, weights):
    torch.save(weights | {"norm.bias": torch.ones(64, dtype=torch.int8)}, tmp_path / "a.pth")
    assert "'norm.bias'" in (message := refused(tmp_path, tmp_path / "a.pth"))
    assert "holds torch.int8, not floats" in message


def test_a_name_with_settings_is_no_set_of_weights(tmp_path, weights):
    torch.save({"state_dict": weights, "params": {"lr": 0.1}, "weights": []}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "out")
    assert read_manifest(tmp_path / "out").notes == ["left out of the training checkpoint: params, weights"]
