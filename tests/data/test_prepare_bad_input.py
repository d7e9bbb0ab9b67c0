"""What can be wrong with downloaded archives, and the one sentence that each gets."""

import gzip
import io
import json
import os
import re
import shutil
import struct
import tarfile
import zipfile
import zlib
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from dinov3seg_jax.data.prepare import workers
from dinov3seg_jax.data.prepare.archives import Member, read_member
from dinov3seg_jax.data.prepare.matching import read_list
from dinov3seg_jax.data.prepare.run import prepare
from dinov3seg_jax.errors import UserError
from tests.data.archives import (
    HEIGHT,
    WIDTH,
    encoded,
    make_ade20k_150,
    make_ade20k_847,
    make_coco_stuff_171,
    make_pascal_context_59,
    make_pascal_context_459,
    make_voc_20,
)

MASKS = "ADEChallengeData2016/annotations/validation"
IMAGES = "ADEChallengeData2016/images/validation"
FIRST = "ADE_val_00000001"


def _refused(name: str, sources, out: Path, *parts: str, splits=("eval",), allow_partial=True) -> None:
    with pytest.raises(UserError) as error:
        prepare(name, sources, out, splits=splits, allow_partial=allow_partial)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    assert ". " not in message.replace(".. ", ""), "one sentence"
    for part in parts:
        assert part in message, message
    assert not (out / "manifest.json").exists()


@pytest.fixture
def ade(tmp_path) -> Path:
    """ADE20K-150 as unpacked."""
    return make_ade20k_150(tmp_path / "official").tree


def _grey(values) -> bytes:
    return encoded(Image.fromarray(np.asarray(values)))


def _flat(value: int, kind=np.uint8) -> np.ndarray:
    return np.full((HEIGHT, WIDTH), value, kind)


def test_a_source_that_is_not_there(tmp_path):
    _refused("voc_20", [tmp_path / "VOC.tar"], tmp_path / "out", "VOC.tar", "does not exist")
    assert not list(tmp_path.iterdir()), "nothing was begun"


def test_another_archive(tmp_path):
    other = make_voc_20(tmp_path / "voc").archives
    _refused("ade20k_150", other, tmp_path / "out", "VOCtrainval_11-May-2012.tar", "ADEChallengeData2016.zip")
    mine = make_ade20k_150(tmp_path / "ade").archives
    manifest = prepare("ade20k_150", mine, tmp_path / "out", allow_partial=True)  # nothing was begun with the others
    assert manifest["splits"]["eval"]["files"] == 3


def test_another_year(tmp_path):
    sources = make_pascal_context_59(tmp_path / "context").archives
    _refused("voc_20", sources, tmp_path / "out", "has no image with labels of voc_20's split 'eval'")


def test_another_year_beside_the_right_one(tmp_path):
    official = make_voc_20(tmp_path / "official")
    shutil.copytree(official.tree / "VOCdevkit" / "VOC2012", official.tree / "VOCdevkit" / "VOC2007")
    manifest = prepare("voc_20", [official.tree], tmp_path / "out", allow_partial=True)
    assert manifest["splits"]["eval"]["files"] == 2


def test_images_without_their_labels(tmp_path):
    images = make_coco_stuff_171(tmp_path / "coco").archives[:2]
    _refused("coco_stuff_171", images, tmp_path / "out", "stuffthingmaps_trainval2017.zip")


@pytest.mark.parametrize("name", ["VOC.tar", "VOC.zip", "VOC.tar.gz"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", bytes(5)], ids=["empty", "html", "zeros"])
def test_no_archive(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    _refused("voc_20", [tmp_path / name], tmp_path / "out", name)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_truncated_archive(tmp_path, kind, share):
    official = make_pascal_context_459(tmp_path / "official")
    by_kind = {path.name.partition(".")[2]: path for path in official.archives}
    if kind == "zip":
        whole = make_ade20k_150(tmp_path / "ade").archives[0]
    else:
        whole = by_kind["tar" if kind == "tar" else "tar.gz"]
    content = whole.read_bytes()
    whole.write_bytes(content[: int(len(content) * share)])
    sources = [whole] if kind == "zip" else official.archives
    dataset = "ade20k_150" if kind == "zip" else "pascal_context_459"
    _refused(dataset, sources, tmp_path / "out", whole.name, allow_partial=False)


def test_a_damaged_member(tmp_path):
    source = make_ade20k_150(tmp_path / "official").archives[0]
    with zipfile.ZipFile(source) as archive:
        info = archive.getinfo(f"{IMAGES}/{FIRST}.jpg")
    content = bytearray(source.read_bytes())
    content[info.header_offset + 200] ^= 255
    source.write_bytes(content)
    _refused("ade20k_150", [source], tmp_path / "out", f"{IMAGES}/{FIRST}.jpg", "cannot be read")


@pytest.mark.parametrize("name", ["/etc/x.txt", "../x.txt", "a/../../x.txt"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_member_that_leads_out_of_the_archive(tmp_path, name, kind):
    source = tmp_path / f"source.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr(name, b"x")
    else:
        with tarfile.open(source, "w") as archive:
            archive.addfile(tarfile.TarInfo(name))
    _refused("voc_20", [source], tmp_path / "out", name, "leads out of the archive")


def test_links_in_a_tar_are_passed_over(tmp_path):
    official = make_voc_20(tmp_path / "official")
    picture = official.images["eval"]["2007_000033"]
    secret = picture.rename(tmp_path / "secret.jpg")
    picture.symlink_to(secret)
    tar = official.archives[0]
    with tarfile.open(tar, "w") as archive:
        archive.add(official.tree / "VOCdevkit", "VOCdevkit")
    _refused("voc_20", [tar], tmp_path / "out", "2007_000033", "its image is missing", allow_partial=False)


def test_a_member_that_claims_an_absurd_size(tmp_path):
    source = make_ade20k_150(tmp_path / "official").archives[0]
    content = bytearray(source.read_bytes())
    place = content.rindex(f"{MASKS}/{FIRST}.png".encode()) - 46  # its entry in the index at the end
    assert content[place : place + 4] == b"PK\x01\x02"
    content[place + 24 : place + 28] = struct.pack("<I", 3_000_000_000)
    source.write_bytes(content)
    _refused("ade20k_150", [source], tmp_path / "out", f"{MASKS}/{FIRST}.png", "claims 3,000,000,000 bytes")


def test_a_compressed_tar_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr("dinov3seg_jax.data.prepare.archives.UNPACKED_BYTES", 10_000_000)
    source = tmp_path / "trainval.tar.gz"
    source.write_bytes(gzip.compress(bytes(30_000_000)))
    _refused("pascal_context_459", [source], tmp_path / "out", "trainval.tar.gz", "no end within")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("removed", "sentence"),
    [(f"{MASKS}/{FIRST}.png", "has no labels"), (f"{IMAGES}/{FIRST}.jpg", "its image is missing")],
    ids=["image without mask", "mask without image"],
)
def test_a_file_without_its_partner(tmp_path, ade, removed, sentence):
    (ade / removed).unlink()
    _refused("ade20k_150", [ade], tmp_path / "out", FIRST, sentence, "--allow_partial", allow_partial=False)
    split = prepare("ade20k_150", [ade], tmp_path / "out", splits=["eval"], allow_partial=True)["splits"]["eval"]
    assert split["files"] == 2
    assert not split["complete"]
    assert len(split["skipped"]) == 1
    assert sentence in split["skipped"][0]


@pytest.mark.parametrize("missing", ["JPEGImages/2007_000034.jpg", "SegmentationClassAug/2007_000034.png"])
def test_a_listed_name_that_is_missing(tmp_path, missing):
    tree = make_voc_20(tmp_path / "official").tree
    (tree / "VOCdevkit" / "VOC2012" / missing).unlink()
    _refused("voc_20", [tree], tmp_path / "out", "2007_000034", allow_partial=False)


def test_a_half_extracted_folder(tmp_path, ade):
    shutil.rmtree(ade / IMAGES)
    _refused("ade20k_150", [ade], tmp_path / "out", "no image with labels", "validation")


@pytest.mark.parametrize("file", [f"{MASKS}/{FIRST}.png", f"{IMAGES}/{FIRST}.jpg"])
@pytest.mark.parametrize("share", [0, 0.5, 0.75])
def test_a_file_of_which_half_was_extracted(tmp_path, ade, file, share):
    content = (ade / file).read_bytes()
    (ade / file).write_bytes(content[: int(len(content) * share)])
    _refused("ade20k_150", [ade], tmp_path / "out", file, "truncated or damaged")


def test_two_files_of_one_name(tmp_path, ade):
    shutil.copytree(ade, ade / "copy")
    _refused("ade20k_150", [ade], tmp_path / "out", "of one name", "copy")


def test_labels_of_another_size(tmp_path, ade):
    (ade / MASKS / f"{FIRST}.png").write_bytes(_grey(_flat(1)[:-1]))
    _refused("ade20k_150", [ade], tmp_path / "out", FIRST, f"{WIDTH} x {HEIGHT}", f"{WIDTH} x {HEIGHT - 1}")


def test_labels_that_fit_a_turned_picture_neither_way(tmp_path, ade):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH + 1, HEIGHT)).save(ade / IMAGES / f"{FIRST}.jpg", exif=exif)
    _refused("ade20k_150", [ade], tmp_path / "out", FIRST, f"{HEIGHT} x {WIDTH + 1}", f"{WIDTH} x {HEIGHT}")


def test_labels_that_note_a_turn_of_their_own(tmp_path, ade):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(_flat(1)).save(ade / MASKS / f"{FIRST}.png", exif=exif)
    _refused("ade20k_150", [ade], tmp_path / "out", FIRST, "to be turned")


@pytest.mark.parametrize("mask", [_flat(151), _flat(300, np.uint16)], ids=["151", "300"])
def test_a_value_outside_the_map(tmp_path, ade, mask):
    (ade / MASKS / f"{FIRST}.png").write_bytes(_grey(mask))
    _refused("ade20k_150", [ade], tmp_path / "out", FIRST, f"the value {mask[0, 0]}", "ade20k_150")


def test_a_value_that_voc_never_uses(tmp_path):
    tree = make_voc_20(tmp_path / "official").tree
    path = tree / "VOCdevkit/VOC2012/SegmentationClassAug/2007_000033.png"
    path.write_bytes(_grey(_flat(21)))
    _refused("voc_20", [tree], tmp_path / "out", "the value 21")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_a_colour_mask(tmp_path, ade, mode):
    (ade / MASKS / f"{FIRST}.png").write_bytes(encoded(Image.new(mode, (WIDTH, HEIGHT))))
    _refused("ade20k_150", [ade], tmp_path / "out", FIRST, f"mode {mode}")


def test_a_palette_counts_by_index(tmp_path, ade):
    mask = Image.fromarray(_flat(7))
    mask.putpalette([200] * 768)
    (ade / MASKS / f"{FIRST}.png").write_bytes(encoded(mask))
    prepare("ade20k_150", [ade], tmp_path / "out", splits=["eval"], allow_partial=True)
    assert (np.asarray(Image.open(tmp_path / "out" / "labels" / "eval" / f"{FIRST}.png")) == 6).all()


def test_fewer_than_eight_bits_are_refused_as_pillow_would_scale_them(tmp_path, ade):
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 4, 0, 0, 0, 0)
    rows = zlib.compress(bytes(HEIGHT * (1 + WIDTH // 2)))
    (ade / MASKS / f"{FIRST}.png").write_bytes(_png(header, rows))
    _refused("ade20k_150", [ade], tmp_path / "out", FIRST, "fewer than 8 bits")


def _png(header: bytes, rows: bytes) -> bytes:
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize("side", [12_000, 40_000], ids=["Pillow warns", "Pillow stops"])
@pytest.mark.parametrize("file", [f"{MASKS}/{FIRST}.png", f"{IMAGES}/{FIRST}.jpg"])
def test_a_decompression_bomb(tmp_path, ade, file, side):
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    (ade / file).write_bytes(_png(header, zlib.compress(bytes(1000))))
    _refused("ade20k_150", [ade], tmp_path / "out", file, "pixels", "claims more than")


def test_eight_bits_where_two_colours_hold_sixteen(tmp_path):
    official = make_ade20k_847(tmp_path / "official")
    path = official.images["eval"][FIRST]
    path.with_name(f"{FIRST}_seg.png").write_bytes(_grey(_flat(7)))
    _refused("ade20k_847", [official.tree], tmp_path / "out", f"{FIRST}_seg.png", "beyond 8 bits")


def _context_459(tmp_path: Path, write) -> Path:
    """The unpacked data set, with one file written by a function."""
    official = make_pascal_context_459(tmp_path / "official")
    write(official.tree / "VOCdevkit/VOC2010/trainval/2010_000002.mat")
    return official.tree


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"LabelMap": _flat(7)}, "has 8 bits where 16 are expected"),
        ({"Labels": _flat(7, np.uint16)}, "no variable 'LabelMap'"),
        ({"LabelMap": _flat(0, np.uint16)}, "the value 0"),
        ({"LabelMap": _flat(461, np.uint16)}, "the value 461"),
        ({"LabelMap": _flat(7, np.uint16)[None]}, "claims the size (1, 24, 32)"),
        ({"LabelMap": _flat(7, float) + 0.5}, "fractions"),
    ],
    ids=["8 bits", "no variable", "zero", "461", "three axes", "fractions"],
)
def test_a_wrong_label_map(tmp_path, content, sentence):
    tree = _context_459(tmp_path, lambda path: scipy.io.savemat(path, content))
    _refused("pascal_context_459", [tree], tmp_path / "out", "2010_000002", sentence)


def test_the_value_after_the_last_class_is_ignored(tmp_path):
    tree = _context_459(tmp_path, lambda path: scipy.io.savemat(path, {"LabelMap": _flat(460, np.uint16)}))
    prepare("pascal_context_459", [tree], tmp_path / "out", splits=["eval"], allow_partial=True)
    assert (np.asarray(Image.open(tmp_path / "out/labels/eval/2010_000002.png")) == 65535).all()


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0", bytes(300)])
def test_a_damaged_label_map(tmp_path, content):
    tree = _context_459(tmp_path, lambda path: path.write_bytes(content))
    _refused("pascal_context_459", [tree], tmp_path / "out", "2010_000002.mat")


def test_a_label_map_that_claims_an_absurd_size(tmp_path):
    def write(path: Path) -> None:
        buffer = io.BytesIO()
        scipy.io.savemat(buffer, {"LabelMap": _flat(7, np.uint16)})
        content = buffer.getvalue()
        path.write_bytes(content.replace(struct.pack("<ii", HEIGHT, WIDTH), struct.pack("<ii", 200_000, 100_000)))

    _refused(
        "pascal_context_459", [_context_459(tmp_path, write)], tmp_path / "out", "claims the size (200000, 100000)"
    )


def _merged(tmp_path: Path, change) -> Path:
    """Pascal-Context-59 with another trainval_merged.json."""
    tree = make_pascal_context_59(tmp_path / "official").tree
    path = tree / "VOCdevkit" / "VOC2010" / "trainval_merged.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content)))
    return tree


def _cut_runs(content: dict) -> dict:
    for entry in content["annos_segmentation"]:
        entry["segmentation"]["counts"] = [HEIGHT * WIDTH - 1]
    return content


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda content: [content], "trainval_merged.json"),
        (lambda content: {"images": content["images"]}, "annos_segmentation"),
        (lambda content: content | {"annos_segmentation": [{"image_id": 1}]}, "segmentation"),
        (_cut_runs, "does not fill its 32 x 24 pixels"),
    ],
    ids=["list", "no segments", "no runs", "runs that end early"],
)
def test_a_wrong_index(tmp_path, change, sentence):
    _refused("pascal_context_59", [_merged(tmp_path, change)], tmp_path / "out", sentence)


def test_a_truncated_index(tmp_path):
    images, index = make_pascal_context_59(tmp_path / "official").archives
    index.write_bytes(index.read_bytes()[:-100])
    _refused("pascal_context_59", [images, index], tmp_path / "out", "trainval_merged.json", "damaged")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path, ade):
    (tmp_path / "locked").mkdir(mode=0o500)
    _refused("ade20k_150", [ade], tmp_path / "locked" / "out", "cannot be written")


def test_an_output_below_a_file(tmp_path, ade):
    (tmp_path / "file").write_bytes(b"")
    _refused("ade20k_150", [ade], tmp_path / "file", "is a file")
    _refused("ade20k_150", [ade], tmp_path / "file" / "out", "cannot be written")


def test_a_folder_that_holds_something_else(tmp_path, ade):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    _refused("ade20k_150", [ade], tmp_path / "out", "is not empty")
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_a_folder_with_another_data_set(tmp_path, ade):
    voc = make_voc_20(tmp_path / "voc").archives
    prepare("voc_20", voc, tmp_path / "out", allow_partial=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="holds voc_20, not ade20k_150"):
        prepare("ade20k_150", [ade], tmp_path / "out")
    with pytest.raises(UserError, match="holds voc_20, not voc_20b"):
        prepare("voc_20b", voc, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unfinished_folder_of_another_data_set(tmp_path):
    voc = make_voc_20(tmp_path / "voc")
    mask = voc.tree / "VOCdevkit/VOC2012/SegmentationClassAug/2007_000034.png"
    mask.write_bytes(mask.read_bytes()[:50])
    _refused("voc_20", [voc.tree], tmp_path / "out", "damaged")
    _refused("voc_20b", [voc.tree], tmp_path / "out", "was begun as voc_20 from", str(voc.tree))
    _refused("voc_20", voc.archives, tmp_path / "out", "was begun as voc_20 from", str(voc.tree))


def test_a_damaged_manifest(tmp_path, ade):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        prepare("ade20k_150", [ade], tmp_path / "out")


@pytest.mark.parametrize("count", [0, -1])
def test_no_workers(tmp_path, ade, count):
    with pytest.raises(UserError, match="use 1 or more"):
        prepare("ade20k_150", [ade], tmp_path / "out", workers=count)


def test_a_split_that_is_not_there(tmp_path):
    source = make_voc_20(tmp_path / "official").archives
    with pytest.raises(UserError, match=re.escape("voc_20 has no split 'train'; there is eval.")):
        prepare("voc_20", source, tmp_path / "out", splits=["train"])


def test_a_member_that_is_cut_short(tmp_path):
    (tmp_path / "a.txt").write_text("names")
    with pytest.raises(UserError, match=r"'a.txt' in 'source' is cut short; get it again"):
        read_member(Member("source", tmp_path, "a.txt", size=9))


@pytest.mark.parametrize("content", ["", "a b a"])
def test_a_list_that_is_none(tmp_path, content):
    (tmp_path / "val.txt").write_text(content)
    members = [Member("source", tmp_path, "val.txt", len(content))]
    with pytest.raises(UserError, match="is no list of different names; get the official one"):
        read_list(members, "(?P<name>val).txt")


def test_a_worker_that_dies(monkeypatch):
    class Dying:
        def __init__(self, *_):
            pass

        def map(self, *_, chunksize):
            raise BrokenProcessPool

        def shutdown(self, cancel_futures):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Dying)
    with pytest.raises(UserError, match="a worker process died, perhaps for want of memory; run again with fewer"):
        list(workers.outcomes([], 2))
