"""The documentation site: built without a warning, and every page opened in a browser."""

import functools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site that DINOV3SEG_SITE names, or one built here, whose code is shown and not run."""
    if "DINOV3SEG_SITE" in os.environ:
        return Path(os.environ["DINOV3SEG_SITE"])
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-D", "nb_execution_mode=off"]
    doctrees = ["--doctree-dir", str(folder / "doctrees")]
    for builder in ("html", "linkcheck"):
        arguments = ["-b", builder, "-D", "linkcheck_ignore=https?://.*", str(ROOT / "docs"), str(folder / builder)]
        built = subprocess.run([*command, *doctrees, *arguments], cwd=ROOT, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
    return folder / "html"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("there is no Chromium here")
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable)
        yield started
        started.close()


@pytest.mark.slow
def test_every_page_opens_without_an_error(site, address, browser):
    tab = browser.new_page(viewport=PHONE)
    wrong, asked = [], []
    tab.on("console", lambda message: wrong.append(f"{tab.url}: {message.type}: {message.text}"))
    tab.on("pageerror", lambda error: wrong.append(f"{tab.url}: {error}"))
    tab.on("request", lambda request: asked.append(request.url))
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    assert {"index.html", "method.html", "reference/config.html", "tutorials/inside.html"} <= set(pages)
    for page in pages:
        tab.goto(address + page, wait_until="load")
        if tab.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
            wrong.append(f"{page} is wider than a phone")
    assert not wrong
    assert {url for url in asked if not url.startswith((address, "data:"))} == set(), "asked of other hosts"


@pytest.mark.slow
def test_the_search_finds(address, browser):
    tab = browser.new_page()
    tab.goto(f"{address}search.html?q=tile_scale")
    tab.wait_for_selector("#search-results li a")
    found = tab.eval_on_selector_all("#search-results li a", "links => links.map(link => link.getAttribute('href'))")
    assert any(link.startswith("huge_images.html") for link in found)
    assert any(link.startswith("reference/config.html") for link in found)
