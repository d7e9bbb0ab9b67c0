"""A temperature kept by a model: the curve, the file, and when it counts."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dinov3seg_jax.errors import UserError, note
from dinov3seg_jax.inference.calibration import FILE, Calibration, read_calibration, write_calibration
from dinov3seg_jax.inference.classes.answers import settle, settle_scores
from dinov3seg_jax.inference.load import calibration_of
from dinov3seg_jax.store.folder import open_folder
from dinov3seg_jax.store.run import write_config
from dinov3seg_jax.text.class_lists import ClassList

SCORES = hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(0, 1, width=32))


def at(temperature, kind="sigmoid"):
    return Calibration(kind, temperature, "", {})


@settings(deadline=None)  # SciPy is loaded by the first
@given(SCORES, st.sampled_from([0.01, 0.5, 1, 3.0, 50]), st.sampled_from(["sigmoid", "softmax"]), st.integers(1, 900))
def test_the_order_of_scores_stays(scores, temperature, kind, classes):
    found = at(temperature, kind)(np.sort(scores), classes)
    assert found.dtype == np.float32
    assert (np.diff(found) >= 0).all()
    assert 0 <= found.min() <= found.max() <= 1
    if temperature == 1:
        np.testing.assert_allclose(found, np.sort(scores), atol=1e-6)


def test_the_curves_are_those_of_their_definitions():
    logits = np.array([-3.0, 0.5, 2.0])
    sigmoid = at(2.0)(1 / (1 + np.exp(-logits)), 5)
    np.testing.assert_allclose(sigmoid, 1 / (1 + np.exp(-logits / 2)), rtol=1e-6)
    one_above_others = np.exp([4.0, 1, 1, 1])  # a softmax whose other classes are alike is divided exactly
    tempered = np.exp(np.array([4.0, 1, 1, 1]) / 2)
    found = at(2.0, "softmax")(one_above_others[:1] / one_above_others.sum(), 4)
    np.testing.assert_allclose(found, tempered[:1] / tempered.sum(), rtol=1e-6)


def test_certain_scores_stay_certain():
    for kind in ("sigmoid", "softmax"):
        np.testing.assert_array_equal(at(3.0, kind)(np.array([0.0, 1.0, 1.0000001]), 4), [0, 1, 1])


def test_thresholds_see_what_is_calibrated():
    asked = ClassList.of("a, b", min_confidence=0.6)
    labels, confidence = np.array([[0, 1]], np.int32), np.array([[0.65, 0.9]], np.float32)
    assert settle(asked, labels, confidence, None)[0].tolist() == [[0, 1]]
    found, lower = settle(asked, labels, confidence, at(2.0))
    assert found.tolist() == [[2, 1]]
    np.testing.assert_allclose(lower, [[0.577, 0.75]], atol=1e-3)
    np.testing.assert_array_equal(settle_scores(asked, np.stack([confidence] * 2), at(2.0))[1], lower)


def test_each_way_has_its_own(tmp_path):
    assert read_calibration(tmp_path, "run") is None
    first, second = at(2.0), dataclasses.replace(at(0.1, "softmax"), options={"window": 3})
    write_calibration(tmp_path, "run", first)
    path = write_calibration(tmp_path, "zero_shot", second)
    assert path == tmp_path / FILE
    assert (read_calibration(tmp_path, "run"), read_calibration(tmp_path, "zero_shot")) == (first, second)


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b'{"run": {}}', b'{"run": {"kind": "sigmoid", "temperature": -1, "weights": "", "options": {}}}'],
)
def test_a_damaged_file(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"calibration.json is damaged \(.*delete it, and calibrate again"):
        read_calibration(tmp_path, "run")


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"calibration.json cannot be written \(No such file"):
        write_calibration(tmp_path / "absent", "run", at(2.0))


def test_it_counts_for_the_weights_that_it_was_fitted_to(tmp_path, config, capsys):
    note.cache_clear()
    write_config(tmp_path / "run", config)
    folder = open_folder(tmp_path / "run")
    options = json.loads(json.dumps(dataclasses.asdict(config.inference)))
    fitted = Calibration("sigmoid", 2.0, folder.fingerprint, options)
    write_calibration(folder.path, "run", fitted)
    assert calibration_of(folder, "run", config) == fitted
    assert calibration_of(folder, "zero_shot", config) is None
    assert not capsys.readouterr().err
    other = dataclasses.replace(config, inference=dataclasses.replace(config.inference, stride=32))
    assert calibration_of(folder, "run", other) == fitted
    assert "was calibrated with other options" in capsys.readouterr().err
    write_calibration(folder.path, "run", dataclasses.replace(fitted, weights="others"))
    assert calibration_of(folder, "run", config) is None
    assert "was calibrated before its weights changed" in capsys.readouterr().err
