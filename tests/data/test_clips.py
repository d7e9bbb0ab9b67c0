"""Frames of videos: their pixels, times and turn, and what is said of those that cannot be read."""

import struct
from fractions import Fraction

import numpy as np
import pytest

from dinov3seg_jax.data import clips
from dinov3seg_jax.data.clips import is_clip, open_clip
from dinov3seg_jax.errors import UserError
from tests.clips import painted, write_clip, write_h264

av = pytest.importorskip("av")
RNG = np.random.default_rng(0)


def read(path):
    with open_clip(path) as clip:
        frames = [(frame.number, frame.time, frame.rgb()) for frame in clip]
    return clip, frames


@pytest.mark.parametrize("size", [(24, 32), (7, 5), (1, 1)])
def test_frames_have_their_pixels_and_times(tmp_path, size):
    images = [RNG.integers(0, 256, (*size, 3), np.uint8) for _ in range(6)]
    times = [80, 120, 121, 300, 333, 900]  # of a variable rate, and not from 0
    clip, frames = read(write_clip(tmp_path / "clip.mkv", images, times))
    assert [number for number, _, _ in frames] == list(range(6))
    assert [time for _, time, _ in frames] == [Fraction(time - 80, 1000) for time in times]
    for (_, _, pixels), image in zip(frames, images, strict=True):
        np.testing.assert_array_equal(pixels, image)
    assert not clip.damage
    assert clip.frames_read == 6


@pytest.mark.parametrize(("kind", "tolerance"), [("gray", 1), ("gray16le", 1), ("yuv420p10le", 2), ("rgb48le", 0)])
def test_deep_and_grey_frames_become_bytes(tmp_path, kind, tolerance):
    image = np.repeat(np.linspace(16, 235, 32).astype(np.uint8)[None, :, None], 24, axis=0).repeat(3, axis=2)
    _, [(_, _, pixels)] = read(write_clip(tmp_path / "clip.mkv", [image], pixels=kind))
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - image).max() <= tolerance


# Of an MP4's 3 x 3 matrix the four numbers that turn: what they make of the picture.
TURNS = {(0, 1, -1, 0): -1, (-1, 0, 0, -1): 2, (0, -1, 1, 0): 1}


@pytest.mark.parametrize("turn", TURNS)
def test_a_turned_video_is_upright(tmp_path, turn):
    image = np.zeros((32, 48, 3), np.uint8)
    image[:16, :16] = 255
    path = write_h264(tmp_path / "clip.mp4", [image] * 2)
    content = bytearray(path.read_bytes())
    matrix = content.find(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in turn)
    content[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    _, [(_, _, pixels), _] = read(path)
    expected = np.rot90(image, TURNS[turn])
    assert pixels.shape == expected.shape
    assert (np.abs(pixels.astype(int) - expected) < 60).mean() > 0.95  # H.264 blurs the edges


def test_what_is_behind_a_damage_is_named(tmp_path):
    path = write_h264(tmp_path / "clip.mp4", [RNG.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(24)])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    clip, frames = read(path)
    assert 6 <= len(frames) < 20
    assert f"{path} is damaged from 0." in clip.damage
    assert f" of 1.0 s: {len(frames)} frames could be read" in clip.damage


def test_a_video_that_ends_early_without_an_error_is_damaged_too(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", [RNG.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(20)])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    clip, frames = read(path)
    assert 5 <= len(frames) <= 10
    assert "of 0.8 s" in clip.damage


def refused(path):
    with pytest.raises(UserError) as caught:
        read(path)
    return str(caught.value)


def test_what_is_no_video_is_one_sentence(tmp_path):
    path = tmp_path / "clip.mp4"
    assert "cannot be read (No such file or directory)" in refused(path)
    path.write_bytes(b"")
    assert "is no video that can be read" in refused(path)
    whole = write_h264(tmp_path / "whole.mp4", painted(4)).read_bytes()
    path.write_bytes(whole[whole.index(b"mdat") :])
    assert "is no video that can be read, or a part of it is lost" in refused(path)
    path.write_bytes(whole[: whole.index(b"mdat") + 4])  # an index of frames that are not there
    assert "has no frame that can be read" in refused(path)


def test_a_list_of_other_files_is_not_opened(tmp_path):
    write_h264(tmp_path / "whole.mp4", painted(4))
    for text in ("ffconcat version 1.0\nfile whole.mp4\n", "#EXTM3U\n#EXTINF:2,\nwhole.mp4\n#EXT-X-ENDLIST\n"):
        (tmp_path / "clip.mp4").write_text(text)
        assert "is no video that can be read" in refused(tmp_path / "clip.mp4")


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    assert refused(path) == f"{path} has no video in it; give a file that has, or a picture"


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    assert "install the extra 'video'" in refused(tmp_path / "clip.mp4")


def test_a_name_is_no_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "http:clip.mkv", painted(2))
    _, frames = read("http:clip.mkv")
    assert len(frames) == 2


@pytest.mark.parametrize("container", ["matroska", "mov", "avi", "mpegts", "flv", "asf"])
def test_a_video_is_known_by_its_content(tmp_path, container):
    path = tmp_path / "nameless"
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream("flv1" if container == "flv" else "mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for pixels in painted(8, (32, 32)):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode(None))
    assert is_clip(path)
    assert len(read(path)[1]) == 8


def test_a_picture_is_no_video(tmp_path):
    from PIL import Image

    for name in ("a.png", "a.jpg", "a.avif", "a.webp", "a.gif", "a.tif", "a.jp2"):
        Image.fromarray(painted(1)[0]).save(tmp_path / name)
        assert not is_clip(tmp_path / name), name
    assert not is_clip(tmp_path / "lost.png")
    assert is_clip(tmp_path / "lost.MP4")


def test_hd_without_a_word_on_colours_is_bt_709(tmp_path):
    """As players have it; smaller pictures are BT.601."""
    green = np.full((720, 16, 3), (0, 200, 0), np.uint8)
    frame = av.VideoFrame.from_ndarray(green, format="rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
    pixels = clips.Frame(0, Fraction(0), frame, (720, 16)).rgb()
    frame.colorspace = clips.UNKNOWN_COLORS
    unsaid = clips.Frame(0, Fraction(0), frame, (720, 16)).rgb()
    np.testing.assert_allclose(unsaid.astype(int), green, atol=4)
    np.testing.assert_allclose(pixels.astype(int), green, atol=60)
