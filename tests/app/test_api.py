"""The app's API gives what Python gives, and one sentence for everything else."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.app.conftest import NAMES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(app, tmp_path_factory):
    from gradio_client import Client

    return Client(app.url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


def ask(client, file, **changes):
    from gradio_client import handle_file

    asked = {"picture": handle_file(file), "names": NAMES} | changes
    return client.predict(**asked, api_name="/segment")


def test_an_answer_is_that_of_python(client, model, picture):
    summaries, archive = ask(client, picture, formats=["json", "labels", "overlay"])
    result = model.segment(picture, NAMES)
    expected = json.loads(json.dumps({"file": "scene.png"} | result.summary()))
    assert summaries == [expected]
    with zipfile.ZipFile(archive) as zipped:
        assert sorted(zipped.namelist()) == ["scene.json", "scene_labels.png", "scene_overlay.png"]
        with zipped.open("scene_labels.png") as file, Image.open(file) as labels:
            np.testing.assert_array_equal(np.array(labels), result.labels)


def test_two_lists_of_names(client, model, picture):
    summaries, _ = ask(client, picture, other_names="sand, wood")
    assert [summary["names"] for summary in summaries] == [["red ball", "grass", "water"], ["sand", "wood"]]
    assert summaries[1]["classes"] == model.segment(picture, "sand, wood").summary()["classes"]


def test_below_a_threshold_pixels_are_unknown(client, model, picture):
    result = model.segment(picture, NAMES)
    middle = float(np.median(result.confidence))
    ((summary,), _) = ask(client, picture, min_confidence=middle)
    assert summary["names"][-1] == "unknown"
    assert summary["classes"][-1]["pixels"] == (result.confidence < middle).sum() > 0
    ((summary,), _) = ask(client, picture, min_confidence=middle, unknown="none of these")
    assert summary["names"][-1] == "none of these"


def test_synonyms_and_a_background(client, model, picture):
    ((summary,), _) = ask(client, picture, names="red ball|ball, grass", background="sand", synonyms="best")
    expected = model.segment(picture, "red ball|ball, grass", background="sand", synonyms="best").summary()
    assert summary["classes"] == expected["classes"]
    assert summary["names"] == ["red ball", "grass", "background"]


def test_scores_of_every_class(client, model, picture):
    _, archive = ask(client, picture, formats=["scores"])
    with zipfile.ZipFile(archive) as zipped, zipped.open("scene_scores.npz") as file:
        found = np.load(io.BytesIO(file.read()))["scores"]
    np.testing.assert_array_equal(found, model.segment(picture, NAMES, scores=True).scores.astype(np.float16))


def test_what_is_here(client):
    assert client.predict(api_name="/models") == [{"name": "tiny", "ready": True}]
    assert client.predict(api_name="/formats")[:3] == ["overlay", "labels", "json"]
    understood = client.predict("dog|puppy, grass", "sky", api_name="/understand")
    assert understood == [{"name": "dog", "synonyms": ["puppy"]}, "grass", "sky"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"picture": None}, "there is no picture; upload one"),
        ({"names": ""}, "there is no class name"),
        ({"names": "@/etc/passwd"}, "'@/etc/passwd' names a file, and none is read here"),
        ({"names": ", ".join(f"thing {n}" for n in range(301))}, "the list has 301 names, more than 300"),
        ({"names": "dog, dog"}, "the class name 'dog' appears twice"),
        ({"model": "../tiny"}, "there is no model '../tiny' here"),
        ({"formats": ["exe"]}, "there is no format 'exe'"),
        ({"min_confidence": 2}, "min_confidence is 2; give a number from 0 to 1"),
        ({"opacity": 2}, "opacity cannot be used: it should be less than or equal to 1"),
        ({"synonyms": "worst"}, "synonyms is 'worst'; choose 'mean' or 'best'"),
        ({"background": "@/etc/passwd"}, "'@/etc/passwd' names a file"),
        ({"background": "grass"}, "the"),
        ({"min_area": "x"}, "min_area"),
        ({"formats": ["json"], "min_confidence": 0.5, "unknown": "grass"}, "pixels below min_confidence would be"),
        ({"colors": {"grass": "?"}}, "'?' is no colour"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(client, picture, changes, sentence):
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError) as caught:
        ask(client, picture, **changes)
    assert caught.value.message.startswith(sentence)
    assert "Traceback" not in caught.value.message


def test_what_goes_wrong_with_us_is_said_so(client, picture, monkeypatch, capsys):
    from gradio_client.exceptions import AppError

    monkeypatch.setattr("dinov3seg_jax.app.asking._segment", lambda *_: 1 / 0)
    with pytest.raises(AppError, match="something went wrong here, and what was asked is not to blame"):
        ask(client, picture)
    assert "ZeroDivisionError" in capsys.readouterr().err
