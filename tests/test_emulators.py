"""The servers that other tests use do what buckets do, and the proxy what it is told."""

import time

import fsspec
import pytest

from tests.emulators import Faults


def _client(url: str) -> fsspec.AbstractFileSystem:
    return fsspec.filesystem(url.partition(":")[0], use_listings_cache=False)


def test_what_is_written_is_read_and_listed(bucket: str) -> None:
    client = _client(bucket)
    client.pipe_file(f"{bucket}/folder/file", b"content")
    assert client.cat_file(f"{bucket}/folder/file") == b"content"
    assert [name.rpartition("/")[2] for name in client.ls(f"{bucket}/folder", detail=False)] == ["file"]
    big = bytes(range(256)) * 2**16  # 16 MB, more than goes at once
    with client.open(f"{bucket}/big", "wb", block_size=2**23) as file:
        file.write(big)
    assert client.cat_file(f"{bucket}/big") == big
    client.rm_file(f"{bucket}/big")
    assert not client.exists(f"{bucket}/big")


def test_buckets_are_fresh(bucket: str) -> None:
    assert _client(bucket).ls(bucket, detail=False) == []


@pytest.mark.slow
def test_busy_for_a_while(bucket: str, faults: Faults) -> None:
    faults.answer(503, times=2)
    _client(bucket).pipe_file(f"{bucket}/file", b"content")
    assert _client(bucket).cat_file(f"{bucket}/file") == b"content"


def test_no_right_to_write(bucket: str, faults: Faults) -> None:
    faults.answer(403, writes=True)
    with pytest.raises(OSError, match="(?i)forbidden|denied|403"):
        _client(bucket).pipe_file(f"{bucket}/file", b"content")


@pytest.mark.slow
def test_stopped_for_a_while(bucket: str, faults: Faults) -> None:
    faults.stop(0.5)
    began = time.monotonic()
    _client(bucket).pipe_file(f"{bucket}/file", b"content")
    assert time.monotonic() - began >= 0.5
