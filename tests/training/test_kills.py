"""Runs that are killed again and again end as if they had not been, and lose nothing that they said was saved."""

import dataclasses
import time

import numpy as np
import pytest

from dinov3seg_jax.store.evaluations import best_of, read_evaluations
from dinov3seg_jax.store.folder import open_folder
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
    """Moments at which to kill a run: in its steps, in a save, while it starts and restores.

    Most are in saves, where there is something to damage. They are spread evenly over the time that a save takes, from
    its first file to the deletion of an older step, so that a few kills meet every part of it.
    """

    KINDS = ("steps", "save", "save", "start", "save")  # in turn

    def __init__(self, kills, kinds=KINDS, eval_every=0):
        self._rng, self._eval_every = np.random.default_rng(kills), eval_every
        self._seconds_to_ready = self._seconds_of_a_save = 0.0  # as the first life has them
        kinds = [kinds[life % len(kinds)] for life in range(kills)]
        share = {kind: self._rng.permutation(kinds.count(kind)) / kinds.count(kind) for kind in set(kinds)}
        places = {kind: iter(shares) for kind, shares in share.items()}
        self._lives = [(kind, float(next(places[kind]))) for kind in kinds]

    def wait(self, run, process, life):
        """Wait for the moment; which kind it was."""
        kind, share = self._lives[life]
        if kind == "start":
            wait_until(lambda: False, process, (0.4 + 0.6 * share) * self._seconds_to_ready)
            return kind
        began = time.monotonic()
        assert wait_until(lambda: run.began_at() is not None, process), run.said()
        self._seconds_to_ready = time.monotonic() - began
        if kind == "scoring":
            goal = (last_step(run.workdir) // self._eval_every + 2) * self._eval_every
            assert wait_until(lambda: last_step(run.workdir) >= goal - 1, process), run.said()
            time.sleep(share * records(run.workdir, "validation/seconds")[-1]["validation/seconds"])
            return kind
        if kind == "save":
            goal = run.began_at() + self._rng.integers(2, 7)
            assert wait_until(lambda: last_step(run.workdir) >= goal, process), run.said()
            assert wait_until(run.is_saving, process), run.said()
            time.sleep(share * self._seconds_of_a_save)
            return kind
        assert wait_until(run.is_saving, process), run.said()
        began = time.monotonic()
        assert wait_until(run.reported, process), run.said()  # so that runs get on, however slow the disk
        self._seconds_of_a_save = time.monotonic() - began
        goal = last_step(run.workdir) + self._rng.integers(1, 5)
        assert wait_until(lambda: last_step(run.workdir) >= goal, process), run.said()
        return kind


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "processes"), [(20, 1), (5, 2)])
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path, kills, processes):
    """Of twenty kills, twelve meet a save (of five, three), four a start, and four the steps; each victim in turn.

    After each, what was reported saved is whole on the disk, and the next life begins at it or later. The undisturbed
    run saves once, at its end: saving leaves no trace in what is learnt.
    """
    steps = 12 * kills
    straight = Run(tmp_path, "straight", processes, steps=steps, checkpoint_every=steps)
    killed = Run(tmp_path, "killed", processes, steps=steps, checkpoint_every=3)
    straight.finish()
    moments, saved, alive_for = Moments(kills), 0, []
    seen = {}
    for life in range(kills):
        started = killed.start()
        kind = moments.wait(killed, started[0], life)
        victim = started[life % processes]
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
    assert sum(map(sum, seen.values())) > kills / 4, "hardly any save was disturbed"
    assert 0 < saved < steps
    killed.finish()
    assert_the_same_end(killed, straight, steps)


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "processes"), [(2, 1)])
def test_a_run_that_is_killed_while_it_is_scored_comes_to_the_same_best_step(tmp_path, kills, processes):
    """`test_validation.py` compares with a run that is not scored at all."""
    steps = 12 * (kills + 1)
    options = {"steps": steps, "checkpoint_every": 5, "eval_every": 3, "eval_images": 8, "keep_checkpoints": 1}
    scored = Run(tmp_path, "scored", processes, **options)
    killed = Run(tmp_path, "killed", processes, **options)
    scored.finish()
    moments = Moments(kills, ("scoring", "save", "scoring", "start", "steps"), eval_every=3)
    met = []
    for life in range(kills):
        started = killed.start()
        kind = moments.wait(killed, started[0], life)
        known = len(read_evaluations(killed.workdir))
        victim = started[life % processes]
        assert victim.poll() is None, killed.said()
        kill(victim)
        for other in set(started) - {victim}:
            other.kill()
            other.wait()
        met.append((kind, last_step(killed.workdir), known))
        best = best_of(read_evaluations(killed.workdir, until=max(killed.whole_steps(), default=0)))
        assert best is None or best.step in killed.whole_steps()
    killed.finish()
    print("kind of moment, last step in the log, scorings known:", met)
    assert_the_same_end(killed, scored, steps)
    assert read_evaluations(killed.workdir) == read_evaluations(scored.workdir)
    assert len(read_evaluations(scored.workdir)) == steps // 3
    assert killed.whole_steps() == scored.whole_steps()
    one, other = (open_folder(run.workdir, "best") for run in (killed, scored))
    assert one.number == other.number
    assert_same(one.arrays(), other.arrays())
