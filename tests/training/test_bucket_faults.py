"""What a bucket may do to a run: each ends as on a disk, at once or at the next start (docs/checkpoints.md).

`python -m tests.training.test_bucket_faults s3` prints what a run says to each, or to those whose names follow.
"""

import contextlib
import dataclasses
import functools
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dinov3seg_jax import errors
from dinov3seg_jax.folders import children, files_below, remove
from dinov3seg_jax.places import place
from dinov3seg_jax.training import checkpoint, growing, loop
from dinov3seg_jax.training.loop import train
from tests.emulators import Emulator, Faults, serve
from tests.training.test_kills import assert_the_same_end
from tests.training.test_loop import CONFIG

STEPS = 6


class Bucket:
    """Runs in one, in this process, and what is done to them."""

    def __init__(self, url: str, faults: Faults):
        self._url, self.faults, self._runs = url, faults, 0
        self.workdir = place(url)

    def begin(self) -> None:
        """The next life is of a new run."""
        self._runs += 1
        self.workdir = place(f"{self._url}/run_{self._runs}")

    def live(self, steps: int = STEPS, after: int = 0, act: Callable[[], object] | None = None) -> int:
        """Train, and `act` when the step `after` is saved; the status with which the command would end."""
        options = dataclasses.replace(CONFIG.train, steps=STEPS, checkpoint_every=1, keep_checkpoints=2)
        config = dataclasses.replace(CONFIG, workdir=str(self.workdir), train=options)

        def write(line: str) -> None:
            saved = int(line.rpartition("/")[2])
            if act is not None and saved == after:
                act()
            if saved == steps < STEPS:
                raise errors.UserError("this life ends here.")  # in the thread that saves

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint.tqdm, "write", write)
            patch.setattr(growing, "SECONDS", 0.0)
            try:
                train(config)
            except Exception as error:
                return errors._status_of(error)
        return 0

    def newest(self) -> Path:
        """The folder of the newest step."""
        return max((path for path in children(self.workdir / "checkpoints") if path.name.isdecimal()), key=_number)

    def names(self) -> list[str]:
        return [path.name for path in children(self.workdir / "checkpoints")]


def _number(path: Path) -> int:
    return int(path.name)


def largest(folder: Path) -> Path:
    return max(files_below(folder).values(), key=lambda path: path.stat().st_size)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


# While the run goes on, when step 2 is saved. The other statuses that it may end with, beside 0; then it goes on.
OUTAGES: dict[str, tuple[Callable[[Faults], object], set[int]]] = {
    "503 for 10 s": (lambda faults: faults.answer(503, seconds=10), {errors.LOST}),
    "429 for 10 s": (lambda faults: faults.answer(429, seconds=10), {errors.LOST}),
    "answers that break off": (lambda faults: faults.cut(times=3), {errors.LOST}),
    "503 for ever": (lambda faults: faults.answer(503), {errors.LOST}),
    "no answer for a minute": (lambda faults: faults.stop(60), {errors.LOST}),
    "no right to write any more": (lambda faults: faults.answer(403, writes=True), {2}),
}
# While it does not, to a run whose steps 3 and 4 are whole. Where it goes on from.
LOSSES: dict[str, tuple[Callable[[Bucket], object], int]] = {
    "a lost object": (lambda bucket: largest(bucket.newest()).unlink(), 3),
    "a truncated object": (lambda bucket: truncate(largest(bucket.newest())), 3),
    "a lost manifest": (lambda bucket: remove(bucket.newest() / "checksums.json"), 3),
    "a truncated manifest": (lambda bucket: truncate(bucket.newest() / "checksums.json"), 3),
}


class Straight:
    """A run on a disk that nothing disturbs."""

    def __init__(self, folder: Path):
        self.workdir = folder
        options = dataclasses.replace(CONFIG.train, steps=STEPS, checkpoint_every=STEPS)
        train(dataclasses.replace(CONFIG, workdir=str(folder), train=options))


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    describe = functools.cache(loop.describe_step)

    def describe_once(config, mesh):
        options = dataclasses.replace(config.train, checkpoint_every=1, keep_checkpoints=2)
        return describe(dataclasses.replace(config, workdir="any", init_from="", train=options), mesh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "describe_step", describe_once)
        yield


def outage(bucket: Bucket, straight: Straight, kind: str) -> None:
    act, others = OUTAGES[kind]
    bucket.begin()
    status = bucket.live(after=2, act=lambda: act(bucket.faults))
    bucket.faults.clear()
    assert status in {0} | others
    if status:
        assert bucket.live() == 0
    assert_the_same_end(bucket, straight, STEPS)


def loss(bucket: Bucket, straight: Straight, kind: str, capsys: pytest.CaptureFixture[str] | None = None) -> None:
    act, goes_on = LOSSES[kind]
    bucket.begin()
    assert bucket.live(steps=4) == 2
    act(bucket)
    assert bucket.live() == 0
    if capsys is not None:
        said = capsys.readouterr()
        assert f"from step {goes_on} to {STEPS}" in said.out
        assert "checkpoints/4' is damaged: " in said.err
    assert_the_same_end(bucket, straight, STEPS)
    assert "4.damaged" in bucket.names()


def pack_loss(
    bucket: Bucket, straight: Straight, kind: str = "", capsys: pytest.CaptureFixture[str] | None = None
) -> None:
    bucket.begin()
    assert bucket.live(steps=4) == 2
    lost = largest(bucket.workdir / "frozen")
    content = lost.read_bytes()
    lost.unlink()
    assert bucket.live() == 2
    if capsys is not None:
        pack = lost.relative_to(bucket.workdir).parts[1]
        assert re.search(f"error: .*frozen/{pack}", capsys.readouterr().err)
    assert {"3", "4"} <= {*bucket.names()}
    lost.write_bytes(content)
    assert bucket.live() == 0
    assert_the_same_end(bucket, straight, STEPS)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Straight]:
    with compiled_once():
        yield Straight(tmp_path_factory.mktemp("faults") / "straight")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["503 for ever", "answers that break off"])
def test_a_bucket_that_does_not_answer(straight, s3, s3_faults, kind, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    outage(Bucket(s3, s3_faults), straight, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LOSSES)
def test_what_was_lost_is_passed_over(straight, gcs, gcs_faults, kind, capsys):
    loss(Bucket(gcs, gcs_faults), straight, kind, capsys)


@pytest.mark.slow
def test_a_lost_pack_stops_a_run_until_it_is_put_back(straight, s3, s3_faults, capsys):
    pack_loss(Bucket(s3, s3_faults), straight, capsys=capsys)


def _told(emulator: Emulator, wanted: list[str]) -> None:
    os.environ.update(emulator.environment, NO_PROXY="127.0.0.1")
    bucket = Bucket(emulator.new_bucket(), emulator.faults)
    with compiled_once():
        straight = Straight(Path(tempfile.mkdtemp(), "straight"))
        for kinds, do in ((LOSSES, loss), (["a lost object of a pack"], pack_loss), (OUTAGES, outage)):
            for kind in [kind for kind in kinds if not wanted or kind in wanted]:
                began = time.monotonic()
                print(f"\n## {kind}", flush=True)
                try:
                    do(bucket, straight, kind)
                    print(f"## {kind}: the same end, {time.monotonic() - began:.0f} s", flush=True)
                except Exception as error:
                    print(f"## {kind}: {type(error).__name__} {error}", flush=True)
                    emulator.faults.clear()


if __name__ == "__main__":
    with serve("s3" if sys.argv[1] == "s3" else "gcs") as emulator:
        _told(emulator, sys.argv[2:])
