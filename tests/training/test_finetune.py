"""Which parameters train, and that splitting them off loses nothing."""

import dataclasses
import fnmatch

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.config import Config, TrainConfig
from dinov3seg_jax.models.graph import build
from dinov3seg_jax.training.finetune import frozen_blocks, is_trainable, join, partition, updates_of
from dinov3seg_jax.training.program import describe_step
from dinov3seg_jax.training.sharding import make_mesh
from tests.models.tiny import changed

MODEL = changed("", spe="sam")

# Shell patterns of what trains of the towers, with the number of parameters that each is to match.
TRAINED = {
    "none": {},
    "attention": {
        "vision/backbone/blocks/attention/query/kernel": 1,
        "vision/backbone/blocks/attention/value/kernel": 1,
        "vision/head/blocks/attention/query/kernel": 1,
        "vision/head/blocks/attention/value/kernel": 1,
        "text/blocks/attention/query/kernel": 1,
        "text/blocks/attention/value/kernel": 1,
    },
    "last_blocks": {
        "vision/backbone/blocks/*": 18,
        "vision/backbone/norm/*": 2,
        "vision/head/*": 19,
        "text/blocks/*": 13,
        "text/norm/*": 2,
        "text/projection/kernel": 1,
        "text/logit_scale": 1,
    },
    "full": {
        "vision/backbone/blocks/*": 18,
        "vision/backbone/norm/*": 2,
        "vision/backbone/patch_embed/*": 2,
        "vision/backbone/cls_token": 1,
        "vision/backbone/storage_tokens": 1,
        "vision/head/*": 19,
        "text/positional_embedding": 1,
        "text/blocks/*": 13,
        "text/norm/*": 2,
        "text/projection/kernel": 1,
        "text/logit_scale": 1,
    },
}


UPDATES = {pattern.replace("/kernel", "/low_rank/*"): 2 for pattern in TRAINED["attention"]}


@pytest.fixture(scope="module")
def parameters():
    """Every parameter of a model with a SAM encoder, random."""
    rng = np.random.default_rng(0)
    _, described = build(MODEL)
    return {name: jnp.asarray(rng.standard_normal(leaf.shape, np.float32)) for name, leaf in described.items()}


def of_towers(names):
    return {name for name in names if name.startswith(("vision/", "text/"))}


@pytest.mark.parametrize("finetune", TRAINED)
def test_what_trains_of_the_towers(parameters, finetune):
    trained = of_towers(name for name in parameters if is_trainable(name, TrainConfig(finetune=finetune)))
    matched = {pattern: fnmatch.filter(trained, pattern) for pattern in TRAINED[finetune]}
    assert {pattern: len(names) for pattern, names in matched.items()} == TRAINED[finetune]
    assert trained == {name for names in matched.values() for name in names}


@pytest.mark.parametrize("finetune", TRAINED)
@pytest.mark.parametrize("train_spe", [False, True])
def test_the_rest_trains_always_but_sam_only_on_request(parameters, finetune, train_spe):
    train = TrainConfig(finetune=finetune, train_spe=train_spe)
    rest = parameters.keys() - of_towers(parameters)
    sam = {name for name in rest if name.startswith("sam/")}
    assert len(sam) > 20
    trained = {name for name in rest if is_trainable(name, train)}
    assert trained == (rest if train_spe else rest - sam)


def test_of_lora_the_updates_train_and_the_matrices_are_frozen(parameters):
    train = TrainConfig(finetune="lora", lora_rank=2)
    _, described = build(MODEL)
    updates = updates_of(described, train)
    assert not updates_of(described, TrainConfig(finetune="attention", lora_rank=2))
    every = parameters | {name: jnp.ones(leaf.shape) for name, leaf in updates.items()}
    trainable, frozen = partition(every, MODEL, train)
    assert {pattern: len(fnmatch.filter(trainable, pattern)) for pattern in UPDATES} == UPDATES
    assert of_towers(trainable) == set(updates)
    assert of_towers(frozen) == of_towers(parameters)
    assert frozen_blocks(MODEL, train) == (0, 0, MODEL.sam.depth)
    joined = join(trainable, frozen)
    assert joined.keys() == every.keys()


def test_the_alignment_trains_nothing_but_the_towers(parameters):
    train = TrainConfig(finetune="full", train_spe=True, objective="alignment")
    trained = {name for name in parameters if is_trainable(name, train)}
    assert trained == {name for name in of_towers(parameters) if is_trainable(name, TrainConfig(finetune="full"))}


@pytest.mark.parametrize("finetune", TRAINED)
def test_periods_and_the_mask_token_never_train(parameters, finetune):
    train = TrainConfig(finetune=finetune, train_spe=True)
    never = {name for name in parameters if name.rsplit("/", 1)[-1] in ("periods", "mask_token")}
    assert {"vision/backbone/periods", "vision/backbone/mask_token"} <= never
    assert not any(is_trainable(name, train) for name in never)


@pytest.mark.parametrize(("finetune", "blocks"), [(name, 1) for name in TRAINED] + [("last_blocks", n) for n in (0, 9)])
def test_join_undoes_partition_bit_for_bit(parameters, finetune, blocks):
    trainable, frozen = partition(parameters, MODEL, TrainConfig(finetune=finetune, finetune_blocks=blocks))
    joined = join(trainable, frozen)
    assert joined.keys() == parameters.keys()
    for name, value in parameters.items():
        np.testing.assert_array_equal(joined[name], value, err_msg=name)


def test_last_blocks_cuts_the_stacks(parameters):
    train = TrainConfig(finetune="last_blocks", finetune_blocks=1)
    trainable, frozen = partition(parameters, MODEL, train)
    both = trainable.keys() & frozen.keys()
    assert both == {name for name in parameters if name.startswith(("vision/backbone/blocks/", "text/blocks/"))}
    for name in both:
        np.testing.assert_array_equal(trainable[name], parameters[name][1:], err_msg=name)
        np.testing.assert_array_equal(frozen[name], parameters[name][:1], err_msg=name)
    assert frozen_blocks(MODEL, train)[:2] == (1, 1)


@pytest.mark.parametrize(("blocks", "cut"), [(0, (2, 2)), (1, (1, 1)), (2, (0, 0)), (9, (0, 0))])
def test_how_many_blocks_are_frozen(blocks, cut):
    assert frozen_blocks(MODEL, TrainConfig(finetune="last_blocks", finetune_blocks=blocks)) == (*cut, MODEL.sam.depth)
    assert frozen_blocks(MODEL, TrainConfig(finetune="full", finetune_blocks=blocks)) == (0, 0, MODEL.sam.depth)
    assert frozen_blocks(MODEL, TrainConfig(finetune="none", finetune_blocks=blocks)) == (2, 2, MODEL.sam.depth)


def test_sam_is_frozen_unless_it_trains():
    assert frozen_blocks(MODEL, TrainConfig(train_spe=False)).sam == MODEL.sam.depth
    assert frozen_blocks(MODEL, TrainConfig(train_spe=True)).sam == 0


def test_no_block_of_the_last_is_no_empty_array(parameters):
    trainable, frozen = partition(parameters, MODEL, TrainConfig(finetune="last_blocks", finetune_blocks=0))
    assert all(value.size for value in trainable.values())
    assert not trainable.keys() & frozen.keys()


def test_frozen_towers_have_no_optimiser_state():
    def names_in(tree):
        paths = jax.tree_util.tree_leaves_with_path(tree)
        return {str(key.key) for path, _ in paths for key in path if isinstance(key, jax.tree_util.DictKey)}

    config = dataclasses.replace(Config(model=MODEL), train=TrainConfig(finetune="none"))
    program = describe_step(config, make_mesh())
    state, frozen = program.state, program.frozen
    assert not of_towers(state.trainable)
    assert of_towers(frozen)
    assert names_in(state.optimizer) == state.trainable.keys()
