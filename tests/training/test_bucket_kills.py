"""Runs in buckets that are killed at any moment end as if they had been on a disk, and nothing had disturbed them.

`python -m tests.training.test_bucket_kills s3 15 FOLDER` kills more often than the test here.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dinov3seg_jax.folders import children, files_below
from dinov3seg_jax.places import place
from tests.emulators import serve
from tests.training.lives import Run, kill, wait_until
from tests.training.test_kills import assert_the_same_end
from tests.training.test_processes import lose_one

STEPS = 6


def kill_again_and_again(bucket: str, folder: Path, kills: int, seed: int = 0) -> None:
    """Two in five kills while a run starts, the others at any moment of its saves, which follow each other closely.

    A run that comes to its end between two kills is compared, and another one begins.
    """
    straight = Run(folder, "straight", steps=STEPS, checkpoint_every=STEPS)
    straight.finish()
    rng = np.random.default_rng(seed)
    to_ready = a_save = 0.0
    met, runs, saved = 0, 0, 0
    run = _begun(bucket, folder, runs)
    while met < kills:
        (process,) = run.start()
        began = time.monotonic()
        if not a_save:
            assert wait_until(run.has_begun, process), run.said()
            to_ready = time.monotonic() - began
            assert wait_until(run.reported, process), run.said()
            a_save = time.monotonic() - began - to_ready
        starts = rng.random() < 0.4
        moment = rng.uniform(0.3, 1.0) * to_ready if starts else to_ready + rng.uniform(0.0, 3.0) * a_save
        wait_until(lambda: False, process, moment - (time.monotonic() - began))
        if process.poll() is None:
            left = [path.name for path in children(run.workdir / "checkpoints")]
            kill(process)
            met += 1
            print(
                f"kill {met} after {moment:.1f} s, in {'a start' if starts else 'saves'}; there were {left}", flush=True
            )
        began_at = run.began_at()
        assert began_at is None or began_at >= saved, "it went back behind a step that was reported saved"
        saved = max([saved, *run.reported()])
        assert not saved or max(run.whole_steps()) >= saved, "a step that was reported saved is lost"
        if saved == STEPS and process.returncode == 0:
            _compare(run, straight)
            runs, saved = runs + 1, 0
            run = _begun(bucket, folder, runs)
    run.finish()
    _compare(run, straight)
    print(f"{kills} kills of {runs + 1} runs: the same ends", flush=True)


def _begun(bucket: str, folder: Path, number: int) -> Run:
    name = f"killed_{number}"
    workdir = place(f"{bucket}/{name}")
    return Run(folder, name, workdir=workdir, steps=STEPS, checkpoint_every=1, keep_checkpoints=1)


def _compare(run: Run, straight: Run) -> None:
    assert_the_same_end(run, straight, STEPS)
    assert [path.name for path in children(run.workdir / "checkpoints")] == [str(STEPS)]
    assert not [name for name in files_below(run.workdir) if name.startswith("lease")]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills"), [("s3", 2), ("gcs", 1)])
def test_a_run_in_a_bucket_that_is_killed_ends_as_if_it_had_not_been(kind, kills, request, tmp_path):
    kill_again_and_again(request.getfixturevalue(kind), tmp_path, kills)


@pytest.mark.slow
def test_two_processes_write_their_own_parts_to_gs_and_both_go_on_when_one_is_killed(gcs, tmp_path):
    """As the hosts of a pod do."""
    options = {"steps": 20, "batch_size": 4, "checkpoint_every": 5}
    straight = Run(tmp_path, "straight", 2, devices=2, **options)
    straight.finish()
    run = Run(tmp_path, "bucket", 2, devices=2, workdir=place(f"{gcs}/runs/bucket"), **options)
    saved = lose_one(run, victim=1)
    run.finish()
    assert 5 <= saved <= run.began_at() < 20
    assert_the_same_end(run, straight, 20)


def main() -> None:
    """As often as one likes."""
    with serve("s3" if sys.argv[1] == "s3" else "gcs") as emulator:
        os.environ.update(emulator.environment, NO_PROXY="127.0.0.1")
        kill_again_and_again(emulator.new_bucket(), Path(sys.argv[3]), int(sys.argv[2]))


if __name__ == "__main__":
    main()
