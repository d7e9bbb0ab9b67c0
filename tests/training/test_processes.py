"""Several processes: one that dies takes the others with it and says so; a signal for one stops all; mistakes."""

import argparse
import dataclasses
import re
import signal
import time

import pytest

from dinov3seg_jax import processes
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.evaluation.evaluate import evaluate
from dinov3seg_jax.store.evaluations import read_evaluations
from dinov3seg_jax.store.run import RunFolder
from tests.training.lives import Run, kill, wait_until
from tests.training.test_kills import assert_the_same_end
from tests.training.test_loop import last_step

MISTAKES = {
    "two ways": (["--distributed", "--process", "0"], "finds the processes by itself"),
    "no numbers": (["--coordinator", "127.0.0.1:1"], "go together"),
    "no address": (["--processes", "2", "--process", "0"], "go together"),
    "counted from one": (["--coordinator", "127.0.0.1:1", "--processes", "2", "--process", "2"], "from 0 to N - 1"),
    "no cluster": (["--distributed"], "did not find each other"),
}


def parsed(words):
    parser = argparse.ArgumentParser()
    processes.add_process_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_flags_that_cannot_be_followed_are_one_sentence(monkeypatch, mistake):
    def initialize(*named, **options):
        raise ValueError("coordinator_address should be defined.")

    words, message = MISTAKES[mistake]
    monkeypatch.setattr("jax.distributed.initialize", initialize)
    with pytest.raises(UserError, match=message) as caught, processes.joined(parsed(words)):
        raise AssertionError("went on")
    assert re.fullmatch(r"[^\n]*\.", str(caught.value))


def test_a_process_by_itself_joins_nobody(monkeypatch):
    monkeypatch.setattr("jax.distributed.initialize", None)  # calling it would fail
    with pytest.raises(KeyError), processes.joined(parsed([])):
        raise KeyError


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("no data; find it."), 2, "error: no data; find it.\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (
            ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"),
            75,
            "another process of this run was lost",
        ),
        (ZeroDivisionError("a bug"), 1, "ZeroDivisionError: a bug"),
    ],
)
def test_a_process_that_fails_says_why(capsys, error, status, message):
    assert processes._report(error) == status
    assert re.search(message, capsys.readouterr().err, re.DOTALL)


def test_an_error_that_hides_the_loss_of_a_process_is_told_as_that(capsys):
    error = UserError("a checkpoint could not be written.")
    error.__cause__ = RuntimeError("UNAVAILABLE: the following tasks are unhealthy")
    assert processes._report(error) == processes.LOST
    assert "another process of this run was lost" in capsys.readouterr().err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shared by the runs, for their compiled programs."""
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def straight(folder):
    """Thirty steps that nothing disturbed."""
    run = Run(folder, "straight", processes=2, steps=30, checkpoint_every=5)
    run.finish()
    return run


@pytest.mark.slow
def test_process_0_alone_speaks(straight):
    assert straight.said(0).count("training ") == 1
    assert straight.reported() == [5, 10, 15, 20, 25, 30]
    lines = [line for line in straight.said(1).splitlines() if "Gloo" not in line]
    assert lines == []


def lose_one(run, victim):
    """Kill one of two processes between saves, and see the other end; the newest step that was reported saved."""
    started = run.start()
    assert wait_until(lambda: run.reported() and last_step(run.workdir) >= 7, started[0]), run.said()
    kill(started[victim])
    began = time.monotonic()
    assert started[1 - victim].wait(timeout=60) not in (0, 2)
    print("ended after", time.monotonic() - began)
    assert run.says("the run goes on from what is saved.", 1 - victim)
    return max(run.reported())


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_the_other_ends_and_both_go_on(folder, straight, victim):
    run = Run(folder, f"killed_{victim}", processes=2, steps=30, checkpoint_every=5)
    saved = lose_one(run, victim)
    run.finish()
    assert 5 <= saved <= run.began_at() < 30
    assert_the_same_end(run, straight, 30)


@pytest.mark.slow
def test_when_one_process_falls_silent_the_other_ends_within_a_minute(folder):
    """Stopped, not killed: connections stay open, as where a host hangs."""
    run = Run(folder, "silent", processes=2, steps=2000, checkpoint_every=5)
    started = run.start()
    assert wait_until(lambda: last_step(run.workdir) >= 7, started[0]), run.said()
    started[1].send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert started[0].wait(timeout=60) not in (0, 2)
        print("ended after", time.monotonic() - began)
        assert run.says("the run goes on from what is saved.", 0)
    finally:
        kill(started[1])


@pytest.mark.slow
def test_a_signal_for_one_process_has_both_save_the_same_step_and_stop(folder):
    run = Run(folder, "stopped", processes=2, steps=2000, checkpoint_every=2000)
    started = run.start()
    assert wait_until(lambda: last_step(run.workdir) >= 3, started[0]), run.said()
    started[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=120) for process in started] == [143, 143]
    (step,) = run.reported()
    assert run.whole_steps() == [step]
    assert run.said(0).rstrip().endswith("stopped by SIGTERM and saved; the same command goes on from there")
    started = run.start()
    assert wait_until(lambda: run.began_at() is not None, started[0]), run.said()
    assert run.began_at() == step
    for process in started:  # both before either is waited for: one that is left alone ends by itself
        process.kill()
    for process in started:
        process.wait()


@pytest.mark.slow
def test_two_processes_of_two_devices_score_as_one(folder):
    """Weights that are cut over all of them, on pictures that they share, but for a pixel or two that rounding decides:
    here a device has four pictures at a time, and alone eight."""
    run = Run(folder, "scored", 2, devices=2, steps=6, batch_size=4, checkpoint_every=3, eval_every=3)
    run.finish()
    config = dataclasses.replace(RunFolder(run.workdir).config, report_images=0)
    known = read_evaluations(run.workdir)
    assert [one.step for one in known] == run.whole_steps() == [3, 6]
    for one in known:
        alone = evaluate(config, run.workdir, step=str(one.step))
        assert {name: alone[name] for name in one.scores} == pytest.approx(one.scores, abs=5e-3)
    assert run.said(0).count("mIoU") == 2
    assert "mIoU" not in run.said(1)


@pytest.mark.slow
def test_folders_that_are_not_shared_are_refused(folder):
    run = Run(folder, "apart", processes=2, steps=30, checkpoint_every=5)
    started = run.start([folder / "apart_0", folder / "apart_1"])
    assert [process.wait(timeout=400) for process in started] == [2, 2]
    for index in (0, 1):
        assert "is not the same folder for all processes; set --config.workdir to a shared disk." in run.said(index)
