"""The page in a real browser: what is seen is what the model says."""

import base64
import json
import re
import shutil
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.app.conftest import NAMES

pytestmark = pytest.mark.slow
WAIT = 60_000  # milliseconds


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser, app):
    """A new page, on which nothing may go wrong, and which may ask nobody but the app."""
    opened = browser.new_page(viewport={"width": 1366, "height": 768})
    errors, hosts = [], set()
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.on("dialog", lambda dialog: (errors.append("a dialog: " + dialog.message), dialog.dismiss()))
    opened.on("request", lambda request: hosts.add(re.sub(r"^\w+://([^/]*)/.*$", r"\1", request.url)))
    opened.goto(app.url)
    yield opened
    opened.close()
    assert not errors
    assert {host for host in hosts if not host.startswith(("data:", "blob:"))} == {app.url.split("/")[2]}


def ask(page, picture, names=NAMES, wait=".viewer canvas"):
    page.set_input_files("#picture input[type=file]", picture)
    page.fill("#names textarea", names)
    page.wait_for_selector(".viewer img", timeout=WAIT)
    page.get_by_role("button", name="Segment").click()
    page.wait_for_selector(wait, timeout=WAIT)


def at(page, x, y, size, pane=0):
    """What the page says of a pixel."""
    box = page.locator(".viewer canvas").nth(pane).bounding_box()
    page.mouse.move(box["x"] + box["width"] * (x + 0.5) / size[0], box["y"] + box["height"] * (y + 0.5) / size[1])
    return page.locator(".viewer .tip").nth(pane).inner_text()


def slide(page, name, value):
    script = "(range, value) => { range.value = value; range.dispatchEvent(new Event('input')); }"
    page.locator(f".viewer .{name}").evaluate(script, value)


def shown(page):
    """The colours that the canvas shows, as an array; where there is none it is transparent."""
    script = "c => Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
    canvas = page.locator(".viewer canvas").first
    size = canvas.evaluate("c => [c.height, c.width, 4]")
    return np.array(canvas.evaluate(script), np.uint8).reshape(size)


def legend(page):
    rows = page.locator(".viewer .legend li").all()
    return {row.locator(".name").inner_text(): row.locator(".share").inner_text() for row in rows}


def test_the_page_shows_what_the_model_says(page, model, picture):
    result = model.segment(picture, NAMES)
    ask(page, picture)
    assert page.locator("#chips li").all_inner_texts() == ["red ball", "grass", "water"]
    np.testing.assert_array_equal(shown(page)[..., :3], result.colors[result.labels])
    for x, y in ((0, 0), (59, 0), (30, 20), (0, 39), (59, 39)):
        name, score = at(page, x, y, (60, 40)).split(": ")
        assert name == result.names[result.labels[y, x]]
        assert float(score) == pytest.approx(result.confidence[y, x], abs=6e-4)
    shares = {name: 0.0 for name in result.names} | result.areas()
    assert legend(page) == {
        name: "< 0.1 %" if 0 < share < 1e-3 else f"{100 * share:.1f} %" for name, share in shares.items()
    }
    assert "done in" in page.locator("#status").inner_text()


def test_drawing_asks_the_model_nothing(page, app, model, picture, monkeypatch):
    result = model.segment(picture, NAMES)
    ask(page, picture)
    monkeypatch.setattr(type(app.models), "open", None)
    percent = int(100 * np.median(result.confidence))
    slide(page, "threshold", percent)
    below = result.confidence < np.float32(percent / 100)
    assert below.any()
    assert legend(page)["unknown"] == f"{100 * below.mean():.1f} %"
    pixels = shown(page)
    assert (pixels[below][:, :3] == (128, 128, 128)).all()
    slide(page, "threshold", 0)
    slide(page, "opacity", 20)
    assert page.locator(".viewer canvas").evaluate("c => c.style.opacity") == "0.2"
    first = result.names[int(np.bincount(result.labels.ravel(), minlength=3).argmax())]
    row = page.locator(".viewer .legend li", has_text=first)
    row.locator("input[type=color]").evaluate(
        "c => { c.value = '#0102fe'; c.dispatchEvent(new Event('input')); c.dispatchEvent(new Event('change')); }"
    )
    mine = result.labels == result.names.index(first)
    assert (shown(page)[mine][:, :3] == (1, 2, 254)).all()
    page.locator(".viewer .legend li", has_text=first).locator("input[type=checkbox]").uncheck()
    assert (shown(page)[mine][:, 3] == 0).all()
    assert (shown(page)[~mine][:, 3] == 255).all()


def test_a_file_that_is_dropped_on_the_view(page, picture):
    script = """([view, content, name]) => {
        const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
        const data = new DataTransfer();
        data.items.add(new File([bytes], name));
        view.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
    }"""
    content = base64.b64encode(picture.read_bytes()).decode()
    page.wait_for_selector(".viewer .empty")
    page.evaluate(script, [page.locator(".viewer").element_handle(), content, "dropped.png"])
    page.wait_for_selector(".viewer img", timeout=WAIT)
    assert page.locator("#status").inner_text() == "dropped.png: 60 x 40 pixels"


def test_the_scores_of_a_class_as_a_map(page, model, picture):
    scores = model.segment(picture, NAMES, scores=True).scores
    ask(page, picture)
    page.select_option(".viewer .heat", "water")
    page.wait_for_selector(".viewer .scale:not([hidden])", timeout=WAIT)
    assert float(page.locator(".viewer .most").inner_text()) == pytest.approx(scores[2].max(), abs=6e-4)
    for x, y in ((0, 0), (30, 20), (59, 39)):
        name, score = at(page, x, y, (60, 40)).split(": ")
        assert name == "water"
        assert float(score) == pytest.approx(scores[2, y, x], abs=6e-4)
    page.select_option(".viewer .heat", "")
    assert page.locator(".viewer .scale").is_hidden()


def test_two_lists_side_by_side(page, model, picture):
    page.get_by_text("More about the names").click()
    page.fill("#other input, #other textarea", "sand, wood")
    ask(page, picture, wait=".panes.two canvas")
    other = model.segment(picture, "sand, wood")
    for pane, result in enumerate((model.segment(picture, NAMES), other)):
        name, score = at(page, 7, 9, (60, 40), pane).split(": ")
        assert name == result.names[result.labels[9, 7]]
        assert float(score) == pytest.approx(result.confidence[9, 7], abs=6e-4)


def test_a_download_is_drawn_as_the_page_is(page, model, picture, tmp_path):
    result = model.segment(picture, NAMES)
    ask(page, picture)
    percent = int(100 * np.median(result.confidence))
    slide(page, "threshold", percent)
    page.get_by_role("button", name="Download", exact=False).first.click()  # which opens the box
    with page.expect_download(timeout=WAIT) as caught:
        page.locator("#download").click()
    caught.value.save_as(tmp_path / "a.zip")
    assert caught.value.suggested_filename == "scene.zip"
    with zipfile.ZipFile(tmp_path / "a.zip") as zipped:
        summary = json.loads(zipped.read("scene.json"))
        with zipped.open("scene_labels.png") as file, Image.open(file) as labels:
            labels = np.array(labels)
    below = result.confidence < np.float32(percent / 100)
    assert summary["names"][-1] == "unknown"
    np.testing.assert_array_equal(labels, np.where(below, 3, result.labels))


def test_a_closed_page_leaves_no_answer(browser, app, picture):
    opened = browser.new_page()
    opened.goto(app.url)
    ask(opened, picture)
    kept = list(app.folder.glob("*/results/*"))
    assert kept
    opened.close()
    for _ in range(100):
        if not any(path.exists() for path in kept):
            return
        time.sleep(0.2)
    raise AssertionError(f"{kept} stay")


def test_names_are_text_and_never_html(page, picture):
    names = "<script>alert(1)</script>, <img src=x onerror=alert(2)>, ${alert(3)} {{4}}"
    ask(page, picture, names)
    assert page.locator("#chips li").all_inner_texts() == names.split(", ")
    assert set(legend(page)) == set(names.split(", "))
    at(page, 5, 5, (60, 40))
    assert page.locator("img[src=x]").count() == 0


def test_what_cannot_be_done_is_said(page, tmp_path):
    page.get_by_role("button", name="Segment").click()
    page.wait_for_selector(".sentence.wrong", timeout=WAIT)
    assert page.locator("#status").inner_text() == "there is no picture; drop one first"
    broken = tmp_path / "<b>broken.png"
    broken.write_bytes(b"this is no picture")
    page.set_input_files("#picture input[type=file]", broken)
    page.wait_for_selector("text=is no picture that can be read", timeout=WAIT)
    page.fill("#names textarea", "dog, dog")
    page.wait_for_selector("#chips .wrong", timeout=WAIT)


@pytest.mark.parametrize("width", [1366, 390])
def test_nothing_is_cut_off(page, picture, width):
    page.set_viewport_size({"width": width, "height": 800})
    ask(page, picture)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
