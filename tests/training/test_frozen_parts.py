"""What no step changes is stored once, by content, and comes back as it was; old steps, which held all, still do."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.store import run as run_folder
from dinov3seg_jax.store.checksums import CHECKSUMS_FILE
from dinov3seg_jax.store.folder import load_parameters
from dinov3seg_jax.store.frozen import packs_of
from dinov3seg_jax.store.run import RunFolder, write_config
from dinov3seg_jax.training import checkpoint
from dinov3seg_jax.training.checkpoint import Checkpoints
from dinov3seg_jax.training.finetune import join
from tests.training.test_damage import flip_a_bit, largest

CUT = "vision/blocks/kernel"  # the first two blocks of three are frozen
PROGRESS = {"data": {}, "train_seconds": 1}


@pytest.fixture(scope="module")
def parts():
    """(trainable, frozen), with matrices that are frozen in half the memory."""
    rng = np.random.default_rng(0)
    shapes = {"head/kernel": (4, 6), CUT: (1, 4, 5)}, {"sam/kernel": (400, 300), CUT: (2, 4, 5), "text/scale": (7,)}
    trainable, frozen = ({name: jnp.asarray(rng.normal(size=of[name]), jnp.float32) for name in of} for of in shapes)
    halved = {name: frozen[name].astype(jnp.bfloat16) for name in frozen if name.endswith("/kernel")}
    return trainable, frozen | halved


@pytest.fixture(autouse=True)
def described(parts, monkeypatch):
    """Of the "model"."""
    leaves = {name: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for name, leaf in join(*parts).items()}
    monkeypatch.setattr(run_folder, "_describe", lambda model: leaves)
    return leaves


@pytest.fixture(scope="module")
def finished(tmp_path_factory, parts):
    """The folder of a run that was saved at steps 2 and 4."""
    workdir = tmp_path_factory.mktemp("finished")
    train(workdir, parts, (2, 4))
    return workdir


@pytest.fixture
def run(finished, tmp_path):
    """A copy, which therefore has all that it needs."""
    return shutil.copytree(finished, tmp_path / "copies" / "run")


def train(workdir, parts, steps, share=True, home=None):
    """A run's saves, each of other weights; without `share` as all runs once saved."""
    write_config(workdir, Config())
    trainable, frozen = parts
    checkpoints = Checkpoints(workdir, keep=2, home=home)
    if share:
        checkpoints.share(frozen)
    for step in steps:
        moved = at_step(trainable, step)
        checkpoints.save(step, moved if share else join(moved, frozen), optimizer(moved), PROGRESS)
    checkpoints.close()


def at_step(trainable, step):
    return {name: value + step for name, value in trainable.items()}


def optimizer(trainable):
    return {"mu": trainable}


def restore(workdir, parts, home=None):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    described = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        (parts[0], optimizer(parts[0]), parts[1]),
    )
    checkpoints = Checkpoints(workdir, keep=2, home=home)
    restored = checkpoints.restore(*described)
    return checkpoints, restored


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def packs(workdir):
    return sorted((workdir / "frozen").iterdir())


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*"))


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_steps_share_one_pack_and_hold_only_what_trains(run, parts):
    (pack,) = packs(run)
    for step in (2, 4):
        assert packs_of(run / "checkpoints" / str(step)).keys() == {pack}
    weight = parts[1]["sam/kernel"].nbytes
    assert size(run / "checkpoints" / "4") < weight / 2 < size(pack)


@pytest.mark.parametrize("share", [True, False])
def test_what_is_restored_is_what_was_there(tmp_path, parts, share):
    """To the bit and the type: from a step that refers to a pack, and from one of the old kind, which holds all."""
    train(tmp_path / "run", parts, (2,), share)
    assert (tmp_path / "run" / "frozen").exists() == share
    checkpoints, restored = restore(tmp_path / "run", parts)
    checkpoints.close()
    moved = at_step(parts[0], 2)
    assert_same(restored.parameters, moved)
    assert_same(restored.optimizer["mu"], moved)
    assert_same(restored.frozen, parts[1])


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("placed", [True, False])
def test_who_only_segments_reads_all_of_it(tmp_path, parts, described, share, placed):
    train(tmp_path / "run", parts, (2,), share)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    _, loaded = load_parameters(tmp_path / "run", dict.fromkeys(described, device) if placed else None)
    whole = join(at_step(parts[0], 2), parts[1])
    assert_same(loaded, {name: value.astype(jnp.float32) for name, value in whole.items()})


def test_a_part_of_it_alone(run, parts):
    loaded = RunFolder(run).arrays(("vision/",))
    assert loaded[CUT].shape[0] == 3
    assert {name.split("/")[0] for name in loaded} == {"vision"}


def test_a_resumed_run_writes_nothing_again(run, parts):
    before = stamps(run / "frozen")
    checkpoints, restored = restore(run, parts)
    checkpoints.share(restored.frozen)
    checkpoints.save(6, restored.parameters, restored.optimizer, PROGRESS)
    checkpoints.close()
    assert stamps(run / "frozen") == before
    assert packs_of(run / "checkpoints" / "6") == packs_of(run / "checkpoints" / "4")


def test_a_run_that_began_with_whole_steps_goes_on_with_references(tmp_path, parts):
    run = tmp_path / "run"
    train(run, parts, (2,), share=False)
    checkpoints, restored = restore(run, parts)
    checkpoints.share(restored.frozen)
    checkpoints.save(4, restored.parameters, restored.optimizer, PROGRESS)
    checkpoints.close()
    assert not packs_of(run / "checkpoints" / "2")
    checkpoints, again = restore(run, parts)
    checkpoints.close()
    assert again.step == 4
    assert_same(again.parameters, restored.parameters)
    assert_same(again.frozen, restored.frozen)
    flip_a_bit(largest(packs(run)[0]))
    checkpoints, older = restore(run, parts)
    checkpoints.close()
    assert older.step == 2


def test_a_pack_of_a_run_that_ended_before_its_first_step_is_used(tmp_path, parts):
    run = tmp_path / "run"
    train(run, parts, ())
    before = stamps(run / "frozen")
    train(run, parts, (2,))
    assert stamps(run / "frozen") == before


@pytest.mark.parametrize("harm", ["half", "damaged"])
def test_a_pack_that_is_not_whole_is_written_again(tmp_path, parts, harm):
    """As a kill leaves it, and as a disk may."""
    run = tmp_path / "run"
    train(run, parts, ())
    (pack,) = packs(run)
    if harm == "half":
        (pack / CHECKSUMS_FILE).unlink()
    else:
        flip_a_bit(largest(pack))
    train(run, parts, (2,))
    assert packs(run) == [pack]
    restore(run, parts)[0].close()


def test_another_run_that_is_called_frozen_is_left_alone(tmp_path, parts):
    train(tmp_path / "run" / "frozen", parts, (2,))
    before = stamps(tmp_path / "run" / "frozen")
    train(tmp_path / "run", parts, (2, 4))
    after = stamps(tmp_path / "run" / "frozen")
    assert {path: after[path] for path in before.keys() - {tmp_path / "run" / "frozen"}}.items() <= before.items()


def test_what_no_step_needs_is_deleted_and_what_one_needs_is_kept(run, parts):
    """Whether the step is this run's or that of one in its folder, finished or put aside."""
    old = packs(run)
    other = (parts[0], {name: value + 1 for name, value in parts[1].items()})
    train(run, other, (6,))
    assert len(packs(run)) == 2  # step 4 is still there
    (run / "checkpoints" / "4").rename(run / "checkpoints" / "4.damaged")
    train(run, other, (8, 10))
    assert len(packs(run)) == 2
    shutil.copytree(run / "checkpoints" / "4.damaged", run / "towers" / "checkpoints" / "4")
    shutil.rmtree(run / "checkpoints" / "4.damaged")
    train(run, other, (12,))
    assert len(packs(run)) == 2
    (reference,) = (run / "towers").rglob("frozen.json")
    reference.write_text("{")  # nobody knows what it needs
    train(run, other, (14,))
    assert len(packs(run)) == 2
    shutil.rmtree(run / "towers")
    train(run, other, (16,))
    (left,) = packs(run)
    assert left not in old


DAMAGES = {
    "a flipped bit": (lambda pack: flip_a_bit(largest(pack)), "is damaged: .* is not what was written"),
    "a missing file": (lambda pack: largest(pack).unlink(), "is damaged: .* is missing"),
    "no checksums": (lambda pack: (pack / CHECKSUMS_FILE).unlink(), "is damaged: it has no checksums.json"),
    "no pack": (shutil.rmtree, "is missing"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_pack_is_named_with_the_mend(run, kind):
    (pack,) = packs(run)
    harm, said = DAMAGES[kind]
    harm(pack)
    mend = rf"is whole \(step 4: '{pack}', which it needs, {said}.*\); put '{pack}' back from a copy of the run, or del"
    with pytest.raises(UserError, match=mend):
        load_parameters(run)
    with pytest.raises(UserError, match=rf"4' is damaged: '{pack}', which .*; put '{pack}' back from a copy"):
        RunFolder(run, "4").whole_step()


def test_a_pack_that_is_not_written_stops_the_run(tmp_path, parts, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_checksums", fail)
    with pytest.raises(UserError, match=r"frozen/.*' could not be written \(.*No space.*\); .* goes on from the begin"):
        train(tmp_path / "run", parts, (2,))
    assert packs(tmp_path / "run") == []
    monkeypatch.setattr(checkpoint, "save_pack", fail)
    with pytest.raises(UserError, match=r"frozen/.*' could not be written"):
        train(tmp_path / "run", parts, (2,))


def test_a_run_within_a_run_keeps_its_frozen_parts_there(tmp_path, parts):
    """As the towers that a run trains first: what both freeze lies there once."""
    outer, inner = tmp_path / "run", tmp_path / "run" / "towers"
    train(inner, parts, (2,), home=outer)
    (shared,) = packs(outer)
    assert not (inner / "frozen").exists()
    more = parts[0], parts[1] | {"more/kernel": jnp.ones(3)}
    train(outer, more, (2,))
    (own,) = {*packs(outer)} - {shared}
    held = packs_of(outer / "checkpoints" / "2")
    assert held[own] == {"more/kernel": [3]}
    assert held[shared].keys() == parts[1].keys()
    assert_same(load_parameters(inner)[1], load_parameters(outer)[1])
    alone = shutil.copytree(inner, tmp_path / "alone")
    with pytest.raises(UserError, match=rf"'{alone}/frozen/{shared.name}', which it needs, is missing"):
        load_parameters(alone)
    shutil.copytree(outer / "frozen", alone / "frozen")
    assert_same(load_parameters(alone)[1], load_parameters(inner)[1])


def test_the_weights_depend_on_the_packs_too(run, parts):
    (pack,) = packs(run)
    assert {path for path in pack.rglob("*") if path.is_file()} < set(RunFolder(run).files())
    before = RunFolder(run).fingerprint
    (run / "checkpoints" / "4" / "frozen.json").write_text("{")
    assert not {path for path in RunFolder(run).files() if "4/" in str(path) and pack in path.parents}
    train(run, (parts[0], {name: value + 1 for name, value in parts[1].items()}), (6,))
    assert RunFolder(run).fingerprint != before


def test_the_reference_says_what_lies_where(run, parts):
    (pack,) = packs(run)
    said = json.loads((run / "checkpoints" / "4" / "frozen.json").read_bytes())
    assert said == {pack.name: {name: list(value.shape) for name, value in parts[1].items()}}
