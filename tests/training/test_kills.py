"""Runs that are killed again and again end as if they had not been, and lose nothing that they said was saved."""

import dataclasses
import time

import numpy as np
import pytest

from tests.training.lives import Run, kill, wait_until
from tests.training.test_loop import CONFIG, assert_same, last_step, losses, newest, records


def assert_the_same_end(killed, straight, steps, devices=1):
    """Compare losses, parameters, optimiser and the place in the data, bit for bit."""
    assert losses(killed.workdir) == losses(straight.workdir)
    assert [record["step"] for record in records(killed.workdir)] == list(range(1, steps + 1))
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, steps=steps))
    one, other = newest(killed.workdir, config), newest(straight.workdir, config)
    assert one.step == other.step == steps
    assert_same((one.parameters, one.optimizer), (other.parameters, other.optimizer))
    assert one.progress["data"] == other.progress["data"]


class Moments:
    """Random moments at which to kill a run: in turn while it starts and restores, in its steps, in a save."""

    def __init__(self, seed):
        self._rng = np.random.default_rng(seed)
        self._seconds_to_ready = 5.0

    def wait(self, run, process, life):
        """Wait for the moment; which kind it was."""
        if life % 3 == 0 and life:
            wait_until(lambda: False, process, self._rng.uniform(0.5, 1.05) * self._seconds_to_ready)
            return "start"
        began = time.monotonic()
        wait_until(lambda: run.began_at() is not None, process)
        self._seconds_to_ready = time.monotonic() - began
        if life % 3 == 1:
            goal = run.began_at() + self._rng.integers(2, 7)
            wait_until(lambda: last_step(run.workdir) >= goal, process)
            wait_until(run.is_saving, process)
            time.sleep(self._rng.uniform(0, 0.1))
            return "save"
        wait_until(run.reported, process)  # so that runs get on, however slow the disk
        goal = last_step(run.workdir) + self._rng.integers(1, 5)
        wait_until(lambda: last_step(run.workdir) >= goal, process)
        return "steps"


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "processes"), [(50, 1), (10, 2)])
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path, kills, processes):
    options = {"steps": 16 * kills, "checkpoint_every": 3}
    straight, killed = (Run(tmp_path, name, processes, **options) for name in ("straight", "killed"))
    straight.finish()
    moments, saved, alive_for = Moments(kills), 0, []
    rng = np.random.default_rng(kills)
    seen = {}
    for life in range(kills):
        started = killed.start()
        kind = moments.wait(killed, started[0], life)
        victim = started[rng.integers(processes)]
        assert victim.poll() is None, killed.said()
        in_a_save = killed.is_saving()
        kill(victim)
        dead = time.monotonic()
        for other in set(started) - {victim}:
            if kind == "start":  # others may still wait to be joined, which they do for five minutes
                other.kill()  # if it hasn't ended by itself
                other.wait()
                continue
            assert other.wait(timeout=60) not in (0, 2), "it did not notice"
            alive_for.append(time.monotonic() - dead)
            assert killed.says("start all of them again with the same command", started.index(other))
        began_at, reported = killed.began_at(), killed.reported()
        assert began_at is None or began_at >= saved, "it went back behind a step that was reported saved"
        saved = max([saved, *reported])
        whole = killed.whole_steps()
        assert not saved or max(whole) >= saved, "a step that was reported saved is lost"
        seen.setdefault(kind, []).append(in_a_save)
    print({kind: f"{sum(saves)} of {len(saves)} in a save" for kind, saves in seen.items()}, "longest", alive_for)
    assert sum(map(sum, seen.values())) > kills / 6, "hardly any save was disturbed"
    assert 0 < saved < options["steps"]
    killed.finish()
    assert_the_same_end(killed, straight, options["steps"])
