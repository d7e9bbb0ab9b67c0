"""Scores while a run trains: they change nothing that trains, the best step is kept, and a run may end early."""

import dataclasses
import functools
import json
import shutil
import signal

import numpy as np
import pytest

from dinov3seg_jax.config import DatasetConfig, InferenceConfig, TrainConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.evaluation import validation
from dinov3seg_jax.evaluation.evaluate import evaluate
from dinov3seg_jax.store.evaluations import Evaluation, best_of, best_steps, read_evaluations, write_evaluations
from dinov3seg_jax.store.run import RunFolder, finished_steps, write_config
from dinov3seg_jax.training import loop
from dinov3seg_jax.training.preemption import Stopped
from dinov3seg_jax.training.validation import Scored, Validation, refuse_vain_scoring
from tests.training.test_loop import CONFIG, KilledError, at, dying_in, losses, newest, records
from tests.training.test_loop import assert_same as assert_same_tree

SCORED = {
    "data": dataclasses.replace(CONFIG.data, eval=DatasetConfig(split="eval", size=10, image_size=48)),
    "inference": InferenceConfig(image_size=48, window=32, stride=16),
}


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Let runs that train alike share one traced and compiled step."""
    describe = functools.cache(loop.describe_step)
    plain = TrainConfig()
    unlike = {name: getattr(plain, name) for name in vars(plain) if name.startswith(("eval_", "keep_", "checkpoint_"))}

    def describe_once(config, mesh):
        train = dataclasses.replace(config.train, **unlike)
        config = dataclasses.replace(config, train=train, data=CONFIG.data, inference=InferenceConfig())
        return describe(dataclasses.replace(config, workdir="any", init_from=""), mesh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "describe_step", describe_once)
        yield


class Scores:
    """A validator whose scores are known before: by the number of the call."""

    def __init__(self, *scores, asked="the same"):
        self.scores, self.asked, self.calls = list(scores), asked, 0
        self.before = lambda: None  # each score is told

    def __call__(self, weights, stop):
        self.before()
        if stop():
            return None
        self.calls += 1
        score = self.scores[self.calls - 1]
        return Scored({"miou": score, "pixel_accuracy": 50.0}, {"a": np.zeros((2, 3, 3), np.uint8)})


def run(workdir, validator, **options):
    """Six steps, each of them scored."""
    return loop.train(
        at(workdir, **{"steps": 6, "eval_every": 1, "checkpoint_every": 6} | options), lambda _: validator
    )


def steps(workdir):
    return finished_steps(workdir / "checkpoints")


def miou(workdir):
    return {one.step: one.miou for one in read_evaluations(workdir)}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of six steps that nothing scored; its checkpoints hold averages."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    return loop.train(at(workdir, steps=6, checkpoint_every=6, ema_decay=0.5))


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The same with a real scoring every two steps, the averages of a part that is frozen, and half of its bits."""
    workdir = tmp_path_factory.mktemp("scored") / "run"
    return validation.train(at(workdir, steps=6, checkpoint_every=6, ema_decay=0.5, eval_every=2, **SCORED))


def everything(workdir):
    found = newest(workdir, at(workdir, steps=6, ema_decay=0.5))
    return found.step, found.parameters, found.optimizer, found.progress["data"]


@pytest.mark.slow
def test_scoring_changes_no_bit_of_what_trains(straight, scored):
    assert_same_tree(everything(scored), everything(straight))
    assert losses(scored) == losses(straight)


@pytest.mark.slow
def test_the_scores_are_those_of_the_checkpoint_that_is_written_then(scored):
    config = at(scored, **SCORED)
    best = best_of(read_evaluations(scored))
    assert best.step in steps(scored)
    for step in {"best": best.step, "newest": 6, str(best.step): best.step}:
        of_checkpoint = evaluate(dataclasses.replace(config, report_images=0), scored, step=step)
        in_the_run = {one.step: one.scores for one in read_evaluations(scored)}[6 if step == "newest" else best.step]
        assert {name: of_checkpoint[name] for name in in_the_run} == in_the_run
    assert json.loads((scored / f"step_{best.step}" / "metrics.json").read_text())["miou"] == best.miou


@pytest.mark.slow
def test_what_is_told_of_a_scoring(scored):
    told = [record for record in records(scored, "validation/miou")]
    assert [record["step"] for record in told] == [2, 4, 6]
    assert {record["step"]: record["validation/miou"] for record in told} == miou(scored)
    for record in told:
        assert 0 <= record["validation/unseen_miou"] <= 100
        assert record["validation/seconds"] > 0


@pytest.mark.slow
def test_the_time_of_a_scoring_is_no_step_s(tmp_path, monkeypatch):
    validator = Scores(*range(6))
    clock = loop.time.perf_counter
    waited = [0.0]

    def wait():
        waited[0] += 1000.0

    validator.before = wait
    monkeypatch.setattr("time.perf_counter", lambda: clock() + waited[0])
    run(tmp_path / "run", validator)
    assert all(record["seconds_per_step"] < 500 for record in records(tmp_path / "run"))
    assert all(record["validation/seconds"] > 500 for record in records(tmp_path / "run", "validation/miou"))


@pytest.mark.slow
def test_the_best_step_stays_beside_the_newest(tmp_path):
    workdir = run(tmp_path / "run", Scores(1, 5, 5, 4), keep_checkpoints=1, steps=4)
    assert steps(workdir) == [2, 4]
    assert RunFolder(workdir, "best").number == 2  # of equals the first


@pytest.mark.slow
def test_what_was_best_of_a_step_that_is_kept_stays_with_it(tmp_path):
    """If the newest is damaged, the run goes on from the one before, of which this is the best."""
    workdir = run(tmp_path / "run", Scores(3, 1, 1, 1, 1, 9), keep_checkpoints=2, checkpoint_every=5)
    assert steps(workdir) == [1, 5, 6]
    shutil.rmtree(workdir / "checkpoints" / "6" / "parameters")
    validator = Scores(9)
    run(workdir, validator, keep_checkpoints=2)
    assert (validator.calls, miou(workdir)) == (1, {1: 3, 2: 1, 3: 1, 4: 1, 5: 1, 6: 9})


@pytest.mark.slow
def test_a_run_that_gets_no_better_ends(tmp_path, capsys):
    workdir, patient = tmp_path / "run", Scores(2, 3, 1, 3, 7, 8)
    run(workdir, patient, eval_patience=2, log_every=3)
    why = f"{workdir} ended at step 4: no better mIoU in 2 scorings since step 2 (3.00 %); to go on, raise"
    assert capsys.readouterr().out.splitlines()[-1].startswith(why)
    assert steps(workdir) == [2, 4]
    assert [record["step"] for record in records(workdir)] == [3, 4]
    run(workdir, patient, eval_patience=2, log_every=3)
    assert capsys.readouterr().out.splitlines()[-1].startswith(why)
    assert patient.calls == 4
    run(workdir, patient, eval_patience=3, log_every=3)
    assert miou(workdir) == {1: 2, 2: 3, 3: 1, 4: 3, 5: 7, 6: 8}
    assert steps(workdir) == [5, 6]


@pytest.mark.slow
def test_a_signal_in_a_scoring_is_heard_and_the_next_life_scores_first(straight, tmp_path):
    workdir, validator = tmp_path / "run", Scores(1, 2, 3)
    options = {"ema_decay": 0.5, "eval_every": 2}
    calls = iter((0, 1))  # in the second scoring

    def stop():
        if next(calls, 0):
            signal.raise_signal(signal.SIGTERM)

    validator.before = stop
    with pytest.raises(Stopped):
        run(workdir, validator, **options)
    assert (steps(workdir), miou(workdir)) == ([2, 4], {2: 1})
    run(workdir, validator, **options)
    assert miou(workdir) == {2: 1, 4: 2, 6: 3}
    assert_same_tree(everything(workdir), everything(straight))


@pytest.mark.slow
def test_a_signal_in_the_last_scoring(tmp_path):
    workdir, validator = tmp_path / "run", Scores(1, 2)
    validator.before = lambda: signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Stopped):
        run(workdir, validator, eval_every=6)
    assert (steps(workdir), miou(workdir)) == ([6], {})
    validator.before = lambda: None
    run(workdir, validator, eval_every=6)
    assert (steps(workdir), miou(workdir), validator.calls) == ([6], {6: 1}, 1)


@pytest.mark.slow
def test_what_a_life_scored_past_the_step_that_is_left_does_not_count(tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_place", dying_in(6, loop._place))
        patch.setattr(loop.Checkpoints, "save", saving_until(2, loop.Checkpoints.save))
        with pytest.raises(KilledError):
            run(workdir, Scores(1, 2, 3, 4, 5), checkpoint_every=2)
    assert (steps(workdir), miou(workdir)) == ([1, 2], {1: 1, 2: 2, 3: 3, 4: 4, 5: 5})
    assert RunFolder(workdir, "best").number == 2
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_place", dying_in(1, loop._place))
        with pytest.raises(KilledError):
            run(workdir, Scores())
    assert miou(workdir) == {1: 1, 2: 2}


def saving_until(last, save):
    return lambda self, step, *content: save(self, step, *content) if step <= last else None


def test_scores_of_other_pictures_are_not_compared(tmp_path):
    known = known_of(tmp_path, Scores(9, 1))
    score(score(known, 2), 4)
    other = known_of(tmp_path, Scores(2, 3, asked="other pictures"), 4)
    assert other.is_due(4)
    score(other, 4)
    assert [other.is_best(step) for step in (2, 4)] == [False, True]
    score(other, 6)
    assert [(one.step, one.asked, one.miou) for one in read_evaluations(tmp_path)] == [
        (2, "the same", 9),
        (4, "other pictures", 2),
        (6, "other pictures", 3),
    ]
    assert best_steps(tmp_path, [2, 3, 4, 5, 6]) == {2, 4, 6}


class Told:
    """Logs that remember."""

    def __init__(self):
        self.values, self.shown = {}, {}

    def scalars(self, step, values):
        self.values[step] = values

    def pictures(self, step, pictures):
        self.shown[step] = pictures


def known_of(workdir, validator, start=0, **options):
    """What a process of a run of six steps knows when it begins."""
    return Validation(TrainConfig(**{"steps": 6, "eval_every": 2} | options), validator, workdir, start)


def score(known, step, told=None):
    known(step, {}, lambda: False, told or Told())
    return known


def test_when_weights_are_scored(tmp_path):
    known = known_of(tmp_path, Scores(1))
    assert [step for step in range(9) if known.is_due(step)] == [2, 4, 6, 8]
    assert not score(known, 2).is_due(2)
    assert not any(known_of(tmp_path, Scores(), 2).is_due(step) for step in (0, 1, 2, 3))
    assert known_of(tmp_path, Scores(asked="other pictures"), 2).is_due(2)
    assert not any(known_of(tmp_path, None, 2).is_due(step) for step in range(9))
    assert [step for step in range(9) if known_of(tmp_path, Scores(), eval_every=4).is_due(step)] == [4, 6, 8]


def test_what_is_remembered_and_told(tmp_path, capsys):
    known, told = known_of(tmp_path, Scores(3, float("nan"), 2)), Told()
    for step in (2, 4, 6):
        score(known, step, told)
    assert miou(tmp_path) == {2: 3, 4: None, 6: 2}
    assert [known.is_best(step) for step in (2, 4, 6)] == [True, False, False]
    assert [sorted(values) for values in told.values.values()] == [
        ["validation/miou", "validation/pixel_accuracy", "validation/seconds"],
        ["validation/pixel_accuracy", "validation/seconds"],
        ["validation/miou", "validation/pixel_accuracy", "validation/seconds"],
    ]
    assert [list(shown) for shown in told.shown.values()] == [["validation/a"]] * 3
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("step 2: mIoU 3.00 %, pixel accuracy 50.00 %, the best so far (")
    assert said[2].startswith("step 6: mIoU 2.00 %, pixel accuracy 50.00 %; best: 3.00 % at step 2 (")


def test_a_score_of_nothing_is_never_the_best(tmp_path):
    known = score(known_of(tmp_path, Scores(float("nan")), eval_patience=1), 2)
    assert not known.is_best(2)
    assert not known.is_over
    write_config(tmp_path, CONFIG)
    with pytest.raises(UserError, match="has no best step"):
        assert RunFolder(tmp_path, "best").number


def test_patience_counts_scores_that_can_be_compared(tmp_path):
    known = known_of(tmp_path, Scores(3, 2, 1), eval_every=1, eval_patience=2)
    assert [score(known, step).is_over for step in (1, 2, 3)] == [False, False, True]
    assert known_of(tmp_path, Scores(), 3, eval_every=1, eval_patience=2).is_over
    assert not known_of(tmp_path, Scores(), 3, eval_every=1, eval_patience=3).is_over
    assert not known_of(tmp_path, Scores(), 3, eval_every=1, eval_patience=0).is_over
    assert not known_of(tmp_path, None, 3, eval_every=0).is_over
    assert not known_of(tmp_path, Scores(asked="other pictures"), 3, eval_every=1, eval_patience=2).is_over


def test_what_came_after_the_step_that_a_run_goes_on_from_is_forgotten(tmp_path):
    known = known_of(tmp_path, Scores(1, 2, 9))
    for step in (2, 4, 6):
        score(known, step)
    assert known_of(tmp_path, Scores(), 5).is_best(4)
    assert miou(tmp_path) == {2: 1, 4: 2}


def test_a_damaged_file_of_scores(tmp_path):
    write_evaluations(tmp_path, [Evaluation(1, "asked", {"miou": 1.0})])
    path = tmp_path / "evaluations.json"
    for content in (path.read_text()[:-9], "[{}]", "[1]", path.read_text().replace("1.0", "NaN")):
        path.write_text(content)
        with pytest.raises(
            UserError, match=r"evaluations.json is damaged \(.*\); put it back from a copy, or delete it"
        ):
            read_evaluations(tmp_path)


def test_options_that_would_do_nothing(tmp_path):
    with pytest.raises(UserError, match=r"train.eval_patience 3 counts scorings, and there is none; set --config"):
        refuse_vain_scoring(TrainConfig(eval_patience=3))
    with pytest.raises(UserError, match=r"train.eval_every scores masks, and train.objective 'alignment' trains the"):
        validation.train(at(tmp_path / "run", eval_every=2, objective="alignment"))
    with pytest.raises(ValueError, match="needs a validator"):
        loop.train(at(tmp_path / "run", eval_every=2))
    with pytest.raises(UserError, match="set --config.data.eval.size="):
        validation.train(
            at(tmp_path / "run", eval_every=2, data=dataclasses.replace(CONFIG.data, eval=DatasetConfig(split="eval")))
        )
    assert not (tmp_path / "run").exists()
