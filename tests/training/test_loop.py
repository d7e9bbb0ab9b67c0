"""Runs: they learn, repeat, survive being killed, and refuse what would make them another run."""

import dataclasses
import functools
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.config import (
    Config,
    DataConfig,
    DatasetConfig,
    DecoderConfig,
    LateRefinementConfig,
    TextConfig,
    TrainConfig,
    VisionConfig,
)
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.graph import build, initialize
from dinov3seg_jax.store.folder import load_parameters
from dinov3seg_jax.store.frozen import packs_of
from dinov3seg_jax.store.run import RunFolder
from dinov3seg_jax.training import loop, start
from dinov3seg_jax.training.checkpoint import Checkpoints
from dinov3seg_jax.training.loop import train
from dinov3seg_jax.training.optimizer import learning_rate_schedule
from dinov3seg_jax.training.preemption import Stopped, StopSignals
from dinov3seg_jax.training.resume import refuse_other_run
from dinov3seg_jax.training.step import Batch, make_gradient
from tests.tiny import MODEL

SMALL = dataclasses.replace(
    MODEL,
    vision=VisionConfig(dim=16, depth=1, heads=2, layerscale_init=1.0, head_blocks=0),
    text=TextConfig(dim=16, depth=1, heads=2),
    spe="none",
    late=LateRefinementConfig(enabled=False, dim=8),
    decoder=DecoderConfig(dims=(8, 8), guidance_dims=(8, 8)),
)
CONFIG = Config(
    model=SMALL,
    data=DataConfig(
        train=DatasetConfig(image_size=48), crop_size=32, short_side=(32, 40), classes_per_image=4, color_jitter=False
    ),
    train=TrainConfig(
        steps=4,
        batch_size=2,
        learning_rate=1e-2,
        clip_norm=1.0,
        finetune="full",
        encoder_lr_scale=1.0,
        log_every=1,
        checkpoint_every=2,
    ),
)


class KilledError(Exception):
    """Stands for the end of a process."""


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Let runs of equal options share one traced and compiled step, which is nearly all of their time."""
    describe = functools.cache(loop.describe_step)

    def describe_once(config, mesh):
        return describe(dataclasses.replace(config, workdir="any", init_from=""), mesh)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "describe_step", describe_once)
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The folder of a run of four steps that nothing disturbed."""
    return train(at(tmp_path_factory.mktemp("straight") / "run"))


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The folder of the same run, which died in step 4, after the checkpoint of step 2, and was started again."""
    workdir = tmp_path_factory.mktemp("resumed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_place", dying_in(4, loop._place))
        with pytest.raises(KilledError):
            train(at(workdir))
    assert [record["step"] for record in records(workdir)] == [1, 2, 3]
    with (workdir / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # a line that the end of the process cut short
    return train(at(workdir))


def at(workdir, **options):
    """The test's config in another folder; options of "train" or of the run."""
    of_train = {name: options.pop(name) for name in list(options) if hasattr(CONFIG.train, name)}
    return dataclasses.replace(
        CONFIG, workdir=str(workdir), train=dataclasses.replace(CONFIG.train, **of_train), **options
    )


def dying_in(step, place):
    calls = iter(range(1, step + 1))

    def place_or_die(*arguments):
        if next(calls) == step:
            raise KilledError
        return place(*arguments)

    return place_or_die


def records(workdir, having="loss"):
    """Of steps, or those that have something else."""
    every = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return [record for record in every if having in record]


def last_step(workdir):
    """Of the log's whole lines; 0 where there is none."""
    log = workdir / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}\n")), default=0)


def losses(workdir):
    return [{name: record[name] for name in ("step", "loss", "gradient_norm")} for record in records(workdir)]


def newest(workdir, config=CONFIG):
    """Everything that a run would continue from."""
    program = loop.describe_step(config, loop.make_mesh())
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        (program.state.trainable, program.state.optimizer, program.frozen),
    )
    checkpoints = Checkpoints(workdir, keep=2)
    try:
        return checkpoints.restore(*placed)
    finally:
        checkpoints.close()


def assert_same(actual, expected):
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_leaves_its_config_log_events_and_last_checkpoints(straight):
    assert sorted(path.name for path in straight.iterdir()) == [
        "checkpoints",
        "config.json",
        "frozen",
        "log.jsonl",
        "record.json",
        "tensorboard",
    ]
    assert sorted(path.name for path in (straight / "checkpoints").iterdir()) == ["2", "4"]
    assert list((straight / "tensorboard").glob("events*"))
    assert load_parameters(straight)[0] == at(straight)
    assert RunFolder(straight).progress()["train_seconds"] > 0


def test_the_log_has_a_line_for_each_step(straight):
    lines = records(straight)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert 0 < line["loss"] < 10
        assert line["gradient_norm"] > 0
        assert line["images_per_second"] > 0
        assert 0 <= line["data_wait"] <= 1
        assert 0 < line["goodput"] < 1
        assert 0 <= line["train_miou"] <= 100
        of_parts = [value for name, value in line.items() if name.startswith("gradient_norm/")]
        assert len(of_parts) > 1
        assert line["gradient_norm"] == pytest.approx(np.linalg.norm(of_parts), rel=1e-5)
        assert line["update_norm"] > 0
    rate = learning_rate_schedule(at(straight).train)
    assert [line["learning_rate"] for line in lines] == pytest.approx([float(rate(step)) for step in range(4)])


def test_a_run_says_where_it_begins_before_it_shows_its_bar(tmp_path, monkeypatch, capsys):
    """After it, the words would stand at the end of the bar's line."""

    def end(*_):
        raise KilledError

    monkeypatch.setattr(loop, "Logs", end)  # which shows the bar
    with pytest.raises(KilledError):
        train(at(tmp_path / "run"))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("training"))
    assert line.startswith(f"training {tmp_path / 'run'} from step 0 to 4 on ")
    assert ": 4 steps of " in line


@pytest.mark.slow
def test_the_loss_falls(tmp_path):
    falling = [
        line["loss"]
        for line in records(train(at(tmp_path / "run", steps=60, checkpoint_every=60, objective="alignment")))
    ]
    assert np.mean(falling[-20:]) < 0.95 * np.mean(falling[:20])


def test_all_weights_move(straight):
    before = initialize(SMALL, jax.random.key(0))
    moved = {name for name, value in load_parameters(straight)[1].items() if (value != before[name]).any()}
    # The scale of dinov3.txt's own training has no part in this one's losses.
    fixed = {"vision/backbone/periods", "vision/backbone/mask_token", "text/token_embedding", "text/logit_scale"}
    assert before.keys() - moved <= fixed | {name for name in before if name.endswith("key/bias")}


def test_a_run_that_died_continues_as_if_it_had_not(straight, resumed):
    assert losses(resumed) == losses(straight)
    one, other = newest(resumed), newest(straight)
    assert one.step == other.step == 4
    assert_same(one.parameters, other.parameters)
    assert_same(one.optimizer, other.optimizer)
    assert one.progress["data"] == other.progress["data"]


def test_a_finished_run_is_not_trained_again(straight, capsys):
    before = (straight / "log.jsonl").read_bytes()
    assert train(at(straight)) == straight
    assert f"{straight} is trained already (4 steps); raise train.steps to go on" in capsys.readouterr().out
    assert (straight / "log.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 4}, "train.batch_size=2, not 4"),
        ({"learning_rate": 0.5}, "train.learning_rate=0.01, not 0.5"),
        ({"seed": 3}, "seed=0, not 3"),
        ({"model": MODEL}, "model.vision.dim=16, not 32"),
    ],
)
def test_another_run_is_refused_in_the_same_folder(straight, change, message):
    with pytest.raises(UserError, match=f"holds a run with {message}; choose another --config.workdir"):
        train(at(straight, **change))


def test_what_does_not_change_a_run_may_change(straight):
    changed = at(straight, steps=9, log_every=5, checkpoint_every=3, keep_checkpoints=1, report_images=0)
    refuse_other_run(straight, dataclasses.replace(changed, init_from="elsewhere"))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    def poisoned(*arguments):
        drawn = initialize(*arguments)
        return drawn | {"decoder/head/bias": np.full_like(drawn["decoder/head/bias"], np.nan)}

    monkeypatch.setattr(start, "initialize", poisoned)
    with pytest.raises(UserError, match=r"NaN or infinite somewhere in steps \[1, 1\]; lower train.learning_rate"):
        train(at(tmp_path / "run"))
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


def test_a_new_run_starts_from_the_weights_of_another(straight, tmp_path, monkeypatch):
    seen = {}

    def take_up(*arguments):
        state, frozen, stream, seconds, _ = kept(*arguments)
        parameters = jax.device_get({**state.trainable, **frozen})
        seen.update(step=int(state.step), stream=stream, seconds=seconds, parameters=parameters)
        raise KilledError

    kept = loop.take_up
    monkeypatch.setattr(loop, "take_up", take_up)
    with pytest.raises(KilledError):
        train(at(tmp_path / "run", init_from=str(straight)))
    assert seen["step"] == 0
    assert (seen["stream"], seen["seconds"]) == ({}, 0.0)
    _, expected = load_parameters(straight)
    assert seen["parameters"].keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(seen["parameters"][name], value, err_msg=name)


def test_weights_of_other_encoders_are_refused(straight, tmp_path):
    vision = dataclasses.replace(SMALL.vision, heads=1)
    other = at(tmp_path / "run", init_from=str(straight), model=dataclasses.replace(SMALL, vision=vision))
    with pytest.raises(UserError, match="is a run with model.vision.heads=2, not 1; set --config.model.vision.heads=2"):
        train(other)


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    """The folder of a run whose towers trained alone first and not since."""
    workdir = tmp_path_factory.mktemp("aligned") / "run"
    return train(at(workdir, steps=2, alignment_steps=2, finetune="none"))


@pytest.mark.slow
def test_a_run_from_nothing_first_trains_its_towers_alone(aligned):
    start = initialize(SMALL, jax.random.key(0))
    _, towers = load_parameters(aligned / loop.TOWERS_FOLDER)
    moved = {name.split("/")[0] for name, value in towers.items() if (value != start[name]).any()}
    assert moved == {"vision", "text"}
    _, whole = load_parameters(aligned)
    for name, value in whole.items():
        if name.startswith(("vision/", "text/")):
            np.testing.assert_array_equal(value, towers[name], err_msg=name)
    assert (whole["decoder/head/kernel"] != towers["decoder/head/kernel"]).any()


@pytest.mark.slow
def test_what_a_run_and_its_towers_freeze_is_kept_once_in_the_runs_folder(aligned):
    """The table of tokens trains in neither."""
    packs = [packs_of(folder / "checkpoints" / "2") for folder in (aligned, aligned / loop.TOWERS_FOLDER)]
    assert {*packs[0], *packs[1]} == {*(aligned / "frozen").iterdir()}
    places = [[pack for pack, held in of.items() if "text/token_embedding" in held] for of in packs]
    assert places[0] == places[1] != []
    assert not (aligned / loop.TOWERS_FOLDER / "frozen").exists()


@pytest.mark.slow
def test_the_towers_time_counts(aligned):
    towers = RunFolder(aligned / loop.TOWERS_FOLDER).progress()["train_seconds"]
    assert 0 < towers < RunFolder(aligned).progress()["train_seconds"]


@pytest.mark.slow
def test_weights_to_start_from_take_the_place_of_the_alignment(aligned, tmp_path):
    other = train(at(tmp_path / "run", steps=1, alignment_steps=2, finetune="none", init_from=str(aligned)))
    assert not (other / loop.TOWERS_FOLDER).exists()


@pytest.mark.slow
@pytest.mark.parametrize("by", ["masks", "captions"])
def test_the_alignment_reaches_the_towers_and_nothing_else(by):
    config = loop.towers_alone(at("run", alignment_steps=2, alignment_by=by, accumulate=2, batch_size=2))
    assert (config.train.objective, config.train.accumulate) == {
        "masks": ("alignment", 2),
        "captions": ("captions", 1),
    }[by]
    graph, _ = build(SMALL)
    rng = np.random.default_rng(0)
    names = rng.integers(1, 1000, (6, SMALL.text.context_length))
    batch = Batch(
        rng.integers(0, 256, (2, 32, 32, 3), np.uint8),
        rng.integers(-1, 4, (2, 32, 32)),
        np.array([[4, 1, 0, 5]] * 2),
        caption=rng.integers(1, 1000, (2, 12)) if by == "captions" else None,
    )
    parameters = {name: jnp.asarray(value) for name, value in initialize(SMALL, jax.random.key(0)).items()}
    *_, gradients = jax.jit(make_gradient(config, graph))(parameters, {}, jnp.int32(0), names, batch)
    trained = {name for name, value in gradients.items() if jnp.any(value != 0)}
    assert {name.split("/")[0] for name in trained} == {"vision", "text"}
    assert "vision/backbone/patch_embed/projection/kernel" in trained


def test_a_signal_saves_the_step_at_hand_and_the_run_goes_on_from_there(straight, tmp_path, monkeypatch, capsys):
    def place(*arguments):
        if next(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return kept(*arguments)

    calls, kept = iter(range(1, 9)), loop._place
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_place", place)
        with pytest.raises(SystemExit) as caught:
            train(at(tmp_path / "run"))
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    said = capsys.readouterr().out
    assert "checkpoints/3\n" in said
    assert said.endswith("stopped by SIGTERM and saved; the same command goes on from there\n")
    train(at(tmp_path / "run"))
    assert losses(tmp_path / "run") == losses(straight)
    one, other = newest(tmp_path / "run"), newest(straight)
    assert_same((one.parameters, one.optimizer), (other.parameters, other.optimizer))


def test_the_second_signal_stops_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    signals = StopSignals()
    signals.listen()
    try:
        signal.raise_signal(signal.SIGINT)
        assert signals.received() == signal.SIGINT
        assert Stopped(signals.received()).code == 130
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signals.close()
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_signal_in_the_towers_ends_the_whole_run(tmp_path, monkeypatch):
    def place(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return kept(*arguments)

    kept = loop._place
    monkeypatch.setattr(loop, "_place", dying_before(2, place, kept))
    with pytest.raises(SystemExit):
        train(at(tmp_path / "run", steps=2, alignment_steps=2, finetune="none"))
    assert not (tmp_path / "run" / "config.json").exists()
    assert RunFolder(tmp_path / "run" / loop.TOWERS_FOLDER).progress()


def dying_before(call, special, ordinary):
    calls = iter(range(1, 99))
    return lambda *arguments: (special if next(calls) == call else ordinary)(*arguments)
