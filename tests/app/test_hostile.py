"""Two hundred odd or hostile uploads and calls: each has a status and a sentence, and nothing is left over."""

import gzip
import io
import json
import os
import struct
import zlib

import httpx2 as httpx
import numpy as np
import psutil
import pytest
from PIL import Image

from tests.app.conftest import NAMES

pytestmark = pytest.mark.slow
SLACK = 150 * 2**20  # bytes that the process may have grown by
SECONDS = 60


def encoded(kind, size=(50, 30), mode="RGB", **options):
    content = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(content, kind, **options)
    return content.getvalue()


def png(width, height, rows=b"", depth=8, color=2, extra=b""):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bomb_text():
    """A PNG whose text chunk unpacks to 200 MB."""
    content = b"Comment\0\0" + zlib.compress(bytes(200_000_000))
    return png(
        4,
        4,
        bytes(52),
        extra=struct.pack(">I", len(content)) + b"zTXt" + content + struct.pack(">I", zlib.crc32(b"zTXt" + content)),
    )


def uploads():
    """Contents, by names of files."""
    good = {kind: encoded(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")}
    for kind, content in good.items():
        suffix = kind.lower()
        yield f"good.{suffix}", content
        for part in (0, 1, 7, 8, 20, 33, 60, len(content) // 4, len(content) // 2, len(content) - 9):
            yield f"truncated_at_{part}.{suffix}", content[:part]
        for seed in range(5):
            damaged = bytearray(content)
            rng = np.random.default_rng(seed)
            for place in rng.integers(0, len(damaged), 12):
                damaged[place] = rng.integers(256)
            yield f"damaged_{seed}.{suffix}", bytes(damaged)
        yield f"{suffix}_that_says_it_is.exe", content
    large = (60_000, 60_000), (12_000, 12_000), (1001, 1000), (2**31 - 1, 1), (1, 2**31 - 1)
    for width, height in (*large, (0, 0), (0, 5)):
        yield f"declares_{width}x{height}.png", png(width, height, bytes(1000))
    for width, height in ((1, 1), (1, 2), (2, 1), (1, 3000), (3000, 1), (7, 7)):
        yield f"tiny_{width}x{height}.png", encoded("PNG", (width, height))
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16", "I"):
        yield f"mode_{mode.replace(';', '')}.png", encoded("PNG", (20, 20), "L" if ";" in mode else mode)
    yield "bomb_of_text.png", bomb_text()
    yield "bomb.gz", gzip.compress(bytes(20_000_000))
    yield "zeros.png", bytes(100_000)
    yield "noise.png", os.urandom(100_000)
    yield "page.html", b"<html><script>alert(1)</script></html>"
    yield "drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'><rect width='9' height='9'/></svg>"
    yield "script.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n"
    yield "virtual.vrt", b"<VRTDataset><SourceFilename>/etc/passwd</SourceFilename></VRTDataset>"
    yield "list.txt", b"dog\ncat\n"
    yield "program", b"\x7fELF" + bytes(500)
    yield "<img src=x onerror=alert(1)>.png", good["PNG"]
    yield "..\\..\\windows.png", good["PNG"]
    yield "../../../../etc/escaped.png", good["PNG"]
    yield "/etc/absolute.png", good["PNG"]
    yield "null\0byte.png", good["PNG"]
    yield "new\nline.png", good["PNG"]
    yield "x" * 400 + ".png", good["PNG"]
    yield "狗.png", good["PNG"]
    yield "too_long.bmp", encoded("BMP", (1200, 900))


LISTS = [
    *(
        "<script>alert(1)</script>",
        "{{7*7}}",
        "${7*7}",
        "'; DROP TABLE",
        "\0",
        "\u202edog",
        "a" * 60_000,
        ",,,,",
        "a|b",
    ),
    *("@/etc/passwd", "/etc/passwd", "names.txt", "file:///etc/passwd", "dog, dog", "狗, 草", "😀", '["dog"'),
    *(["dog"], 7, None, True, {"a": 1}),
    *(", ".join(f"thing {n}" for n in range(count)) for count in (300, 5000)),
]
PATHS = [
    *("/etc/passwd", "../../../etc/passwd", "/proc/self/environ", "/dev/zero", "", ".", "/etc", "~/.bashrc"),
    *("file:///etc/passwd", "http://127.0.0.1:1/a.png", "http://169.254.169.254/latest", "https://example.org/a.png"),
]
CALLS = [
    *({"names": names} for names in LISTS),
    *({"picture": {"path": path, "meta": {"_type": "gradio.FileData"}}} for path in PATHS),
    *({"picture": picture} for picture in ("/etc/passwd", 5, [], {"path": 5}, {}, {"path": None})),
    *({"formats": formats} for formats in ([], ["../x"], "json", None, 5, [None], ["json"] * 1000)),
    *({"min_confidence": number} for number in (-1, 2, "x", None, [])),
    *({"colors": colors} for colors in ([], {"red ball": "url(x)"}, {"red ball": 5}, "x", {"a" * 10_000: "#fff"})),
    *({"model": name} for name in ("../../etc", "/etc/passwd", 5)),
    *({"background": names} for names in ("@/etc/passwd", "/etc/passwd", NAMES, 5, [])),
    *({"unknown": name} for name in ("<b>", 5, [], "x" * 100_000)),
    *({"synonyms": word} for word in ("", "worst", None, [])),
    *({"min_area": area} for area in ("-5", "x", "dog=5", 5, [], "9" * 400)),
    *({"simplify": number} for number in (-1, "x", None, 1e308)),
    {"opacity": 1e308},
]
USUAL = {
    **{"picture": None, "names": NAMES, "background": "", "synonyms": "mean", "min_confidence": 0, "unknown": ""},
    **{
        "other_names": "",
        "model": "",
        "formats": ["json"],
        "min_area": "",
        "simplify": 0,
        "opacity": 0.5,
        "colors": {},
    },
}


class Caller:
    """Speaks HTTP, as no well-behaved client would."""

    def __init__(self, url):
        self.http = httpx.Client(base_url=url, timeout=SECONDS)

    def upload(self, name, content):
        return self.http.post("gradio_api/upload", files={"files": (name, content)})

    def call(self, changes):
        """The status, "complete" or "error", and what came with it."""
        data = list((USUAL | changes).values())
        begun = self.http.post("gradio_api/call/segment", json={"data": data})
        if begun.status_code != 200:
            return begun.status_code, begun.text
        with self.http.stream("GET", f"gradio_api/call/segment/{begun.json()['event_id']}") as answer:
            event = ""
            for line in answer.iter_lines():
                key, _, value = line.partition(": ")
                if key == "event":
                    event = value
                elif key == "data" and event in ("complete", "error"):
                    return event, json.loads(value)
        raise AssertionError("the stream ended without an answer")


@pytest.fixture(scope="module")
def caller(app):
    return Caller(app.url)


def test_odd_uploads(app, caller):
    outside = {path for path in app.folder.parent.rglob("*") if app.folder not in (path, *path.parents)}
    caller.call({"picture": _uploaded(caller, "warm.png", encoded("PNG"))})
    before, statuses, count = psutil.Process().memory_info().rss, {}, 0
    for name, content in uploads():
        sent = caller.upload(name, content)
        count += 1
        if sent.status_code != 200:
            assert sent.status_code in (400, 413, 422), (name, sent.text)
            statuses[name] = sent.text
            continue
        (path,) = sent.json()
        assert os.path.realpath(path).startswith(str(app.folder.resolve()))
        picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
        event, found = caller.call({"picture": picture})
        statuses[name] = found if event == "complete" else _sentence(name, event, found)
        assert event == "complete" or str(app.folder) not in statuses[name]
    assert count > 130
    for name in ("good.png", "good.jpeg", "tiny_1x1.png", "mode_RGBA.png", "狗.png"):
        summary = statuses[name][0][0]
        assert sum(row["pixels"] for row in summary["classes"]) == summary["height"] * summary["width"]
    for name in ("declares_60000x60000.png", "declares_12000x12000.png", "declares_1001x1000.png", "too_long.bmp"):
        assert isinstance(statuses[name], str), name
    for name in ("page.html", "drawing.svg", "script.eps", "virtual.vrt", "program"):
        assert "is no picture that can be read" in statuses[name]
    assert {path for path in app.folder.parent.rglob("*") if app.folder not in (path, *path.parents)} == outside
    assert not os.path.exists("/etc/escaped.png")
    assert psutil.Process().memory_info().rss - before < SLACK


@pytest.mark.parametrize("changes", CALLS, ids=lambda changes: repr(changes)[:60])
def test_odd_calls(app, caller, changes):
    picture = _uploaded(caller, "scene.png", encoded("PNG"))
    event, found = caller.call({"picture": picture} | changes)
    if event == "complete":
        assert sum(row["pixels"] for row in found[0][0]["classes"]) == 50 * 30
    else:
        _sentence(repr(changes), event, found)
    assert "root:" not in json.dumps(found)


@pytest.mark.parametrize("name", ["view", "heat", "__init__", "postprocess"])
@pytest.mark.parametrize("data", [5, None, "../../etc", [], ["x", 0, 0], ["x", "0", None], {"a": 1}, ["x"] * 9])
def test_odd_calls_of_what_the_view_asks(caller, name, data):
    parts = caller.http.get("config").json()["components"]
    viewer = next(part["id"] for part in parts if part["props"].get("elem_id") == "viewer")
    body = {"component_id": viewer, "fn_name": name, "data": data, "session_hash": "x"}
    answer = caller.http.post("gradio_api/component_server", json=body)
    if name in ("view", "heat"):
        assert answer.json() == {"error": "this answer was put away to make room; ask again"}
    else:
        assert answer.status_code == 404


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../etc/passwd", "uploads/../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd"]
)
def test_no_file_is_handed_out(app, caller, path):
    answer = caller.http.get(f"gradio_api/file={path}")
    assert answer.status_code in (403, 404)
    assert "root:" not in answer.text


def test_answers_of_others_are_not_handed_out(app, caller):
    kept = [path for path in (app.folder).rglob("*.npy")]
    for path in kept:
        assert caller.http.get(f"gradio_api/file={path}").status_code == 403


def _uploaded(caller, name, content):
    return {"path": caller.upload(name, content).json()[0], "meta": {"_type": "gradio.FileData"}}


def _sentence(what, event, found):
    """What was said of a mistake."""
    text = found if isinstance(found, str) else (found or {}).get("error") or ""
    assert event in ("error", 400, 404, 422), (what, event, found)
    assert text, (what, found)
    assert "Traceback" not in text
    assert "not to blame" not in text, (what, text)
    return text
