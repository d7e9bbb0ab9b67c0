"""The training step as a program: where its arrays lie, and one compilation in a run, never in silence a second."""

import dataclasses
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Int

from dinov3seg_jax.config import Config, ModelConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.graph import bind, build
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.training.finetune import frozen_blocks, join, partition, updates_of
from dinov3seg_jax.training.flops import as_counted, count_flops, count_traced
from dinov3seg_jax.training.gathering import gathered_bytes
from dinov3seg_jax.training.optimizer import make_optimizer
from dinov3seg_jax.training.pretraining import MARGIN
from dinov3seg_jax.training.sharding import (
    AnyMesh,
    batch_sharding,
    example_shares,
    like_parameters,
    on_mesh,
    parameter_shardings,
    replicated,
)
from dinov3seg_jax.training.step import TEXT, Batch, TrainState, make_train_step


class Shardings(NamedTuple):
    """Where the arguments of a step lie, in their order."""

    state: TrainState
    frozen: dict[str, jax.sharding.NamedSharding]
    names: jax.sharding.NamedSharding
    batch: jax.sharding.NamedSharding  # of every array in it


class StepProgram(NamedTuple):
    """A training step ready to be traced, and what it is called with."""

    step: Any  # jitted: (state, frozen, names, batch) -> (state, metrics)
    shardings: Shardings
    graph: nnx.GraphDef
    state: TrainState  # described
    frozen: Parameters  # described
    mesh: AnyMesh
    gathered: int = 0  # bytes of parameters that a device holds for a step beside its own

    def names(self, trainable: Parameters, frozen: Parameters, tokens: Int[Any, "n length"]) -> Any:
        """What the step takes as names: the tokens, or where nothing of the text tower trains, their embeddings.

        These are the same in every step, and so computed before the first.
        """
        if any(name.startswith(TEXT) for name in trainable) or not any(name.startswith(TEXT) for name in frozen):
            return tokens

        def embed(trainable: Parameters, frozen: Parameters, tokens: Any) -> jax.Array:
            return bind(self.graph, join(trainable, frozen)).encode_text(tokens)

        return jax.jit(on_mesh(embed, self.mesh), out_shardings=self.shardings.names)(trainable, frozen, tokens)

    def described_names(self, tokens: Int[Any, "n length"]) -> Any:
        """Shape and type of `names`."""
        return jax.eval_shape(self.names, self.state.trainable, self.frozen, tokens)


def describe_step(config: Config, mesh: AnyMesh) -> StepProgram:
    """Trace nothing and allocate nothing: shapes, shardings and the jitted step.

    Raises:
        UserError: options of the config contradict each other.
    """
    refuse_misfits(config)
    graph, described = build(while_training(config.model), frozen_blocks(config.model, config.train))
    described |= updates_of(described, config.train)
    trainable, frozen = jax.eval_shape(lambda p: partition(p, config.model, config.train), described)
    optimizer = make_optimizer(config.train)
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), trainable, jax.eval_shape(optimizer.init, trainable))
    by_name = parameter_shardings(trainable, mesh, config.fsdp_bytes)
    shardings = Shardings(
        TrainState(replicated(mesh), by_name, like_parameters(state.optimizer, by_name, mesh)),
        parameter_shardings(frozen, mesh, config.fsdp_bytes if config.fsdp_frozen else sys.maxsize),
        replicated(mesh),
        batch_sharding(mesh),
    )
    step = jax.jit(
        on_mesh(make_train_step(config, graph, optimizer, by_name), mesh),
        in_shardings=tuple(shardings),
        out_shardings=(shardings.state, replicated(mesh)),
        donate_argnums=0,
    )
    gathered = gathered_bytes(trainable, by_name, config.model.dtype) if config.fsdp_gather_once else 0
    return StepProgram(step, shardings, graph, state, frozen, mesh, gathered)


def while_training(model: ModelConfig) -> ModelConfig:
    """The model as a step runs it: its class blocks may work on a coarser grid, which no parameter depends on."""
    pooling = model.late.training_pooling or model.late.pooling
    return dataclasses.replace(model, late=dataclasses.replace(model.late, pooling=pooling))


def refuse_misfits(config: Config) -> None:
    """Stop before a model is built that cannot compute, or that sees less of a crop than its labels cover.

    Raises:
        UserError: it names the two options that do not fit.
    """
    model, linear = config.model, config.model.linear
    if model.cafedino.layers:
        raise UserError("CAFe-DINO is not trained here; leave model.cafedino.layers at 0.")
    used = {"vision": True, "text": not linear.classes, "sam": not linear.classes and model.spe == "sam"}
    used |= {part: not linear.classes and getattr(model, part).enabled for part in ("early", "late")}
    for part in (name for name, wanted in used.items() if wanted):
        options = getattr(model, part)
        if options.dim % options.heads:
            raise UserError(
                f"model.{part}.dim {options.dim} cannot be shared out over model.{part}.heads {options.heads}; "
                "make it a multiple."
            )
    if model.towers == "dinotxt" and model.vision.dim // model.vision.heads % 4:
        raise UserError(
            f"model.vision.dim {model.vision.dim} leaves {model.vision.dim // model.vision.heads} for each head, "
            "and rotary positions need a multiple of 4; change dim or heads."
        )
    if model.towers == "tips" and not linear.classes and model.text.dim != model.vision.dim:
        raise UserError(
            f"model.text.dim {model.text.dim} and model.vision.dim {model.vision.dim} differ, and TIPSv2's towers "
            "share one space without a projection; set both alike."
        )
    if len(taps := model.vision.taps) not in (0, 2) or any(tap >= model.vision.depth for tap in taps):
        raise UserError(
            f"model.vision.taps is {taps}; name two blocks below model.vision.depth {model.vision.depth}, or none."
        )
    if used["sam"]:
        _refuse_blocks("model.sam.global_blocks", model.sam.global_blocks, "model.sam.depth", model.sam.depth)
    if linear.classes and config.train.class_weights != "none":
        raise UserError(
            f"train.class_weights={config.train.class_weights} weighs names, which the linear head has none of; set it "
            "to none, or use data.balance."
        )
    if config.train.negatives == "unbiased" and config.data.mix:
        raise UserError(
            "train.negatives 'unbiased' needs classes drawn from one list, and data.mix has several; set "
            "--config.train.negatives=as_drawn, or leave data.mix out."
        )
    if linear.classes and config.data.mix:
        raise UserError("data.mix needs names, of which the linear head has none; leave it out.")
    if "captions" in (config.train.objective, config.train.alignment_by):
        _refuse_captions(config)
    if config.train.objective == "patches" and config.data.crop_size < (MARGIN + 1) * model.vision.patch_size:
        raise UserError(
            f"data.crop_size {config.data.crop_size} leaves no part that two views share; set it to "
            f"{(MARGIN + 1) * model.vision.patch_size} or more."
        )
    if config.train.finetune == "lora" and config.train.lora_rank > min(model.vision.dim, model.text.dim):
        raise UserError(
            f"train.lora_rank {config.train.lora_rank} is more than the towers are wide; set it to 4 to 64, or train "
            "the matrices themselves with train.finetune=attention."
        )
    patch, viewed = model.vision.patch_size, config.train.view_size
    side, option = (viewed, "train.view_size") if viewed else (config.data.crop_size, "data.crop_size")
    if side % patch:
        raise UserError(
            f"{option} {side} is no multiple of the {patch} pixels of model.vision.patch_size; "
            f"set it to {max(patch, side // patch * patch)}."
        )
    if config.train.negatives == "unbiased" and config.train.hardest_classes:
        raise UserError(
            "train.negatives 'unbiased' needs classes drawn evenly, and train.hardest_classes chooses them; set "
            "--config.train.hardest_classes=0 or --config.train.negatives=as_drawn."
        )
    for option in ("kernel", "class_kernel"):
        if model.float32_residual == "all" and getattr(model.late, option) == "fused":
            raise UserError(
                f"model.late.{option} 'fused' adds up in model.dtype, and model.float32_residual is 'all'; set "
                f"--config.model.late.{option}=xla or --config.model.float32_residual=encoders."
            )
    if linear.classes:
        _refuse_blocks("model.linear.layers", linear.layers, "model.vision.depth", model.vision.depth)
    if config.train.batch_size % config.train.accumulate:
        raise UserError(
            f"train.batch_size {config.train.batch_size} cannot be run in train.accumulate={config.train.accumulate} "
            "equal parts; make it a multiple."
        )


def _refuse_blocks(option: str, blocks: tuple[int, ...], of: str, depth: int) -> None:
    if list(blocks) != sorted({*blocks} & {*range(depth)}):
        raise UserError(
            f"{option} is {blocks}, but blocks are counted from 0 and {of} is {depth}; give increasing numbers below "
            "that."
        )


def _refuse_captions(config: Config) -> None:
    if config.model.towers != "dinotxt":
        raise UserError(
            f"captions train dinov3.txt's towers, whose texts have two halves, and model.towers is "
            f"{config.model.towers}; set --config.train.alignment_by=masks."
        )
    if config.data.mix:
        raise UserError("captions need the names of one data set, and data.mix has several; leave data.mix out.")
    if config.train.objective == "captions" and config.train.accumulate > 1:
        raise UserError(
            "captions are told apart within a batch, which train.accumulate would cut; set --config.train.accumulate=1."
        )


def refuse_uneven_batches(config: Config, mesh: AnyMesh) -> None:
    """Stop before a run in which some devices would have more examples than others.

    Raises:
        UserError: it says what batch, or what shape of the mesh, would do.
    """
    batch, parts = config.train.batch_size, config.train.accumulate
    together = example_shares(mesh) * parts
    if batch % together:
        divisors = (n for n in range(1, mesh.size + 1) if not mesh.size % n)
        enough = next((n for n in divisors if not batch % (mesh.size // n * parts)), 0)
        in_parts = f" in {parts} parts" if parts > 1 else ""
        shared = f", or let devices share the work of one example with --config.model_parallel={enough}"
        raise UserError(
            f"train.batch_size {batch} cannot be shared out over {example_shares(mesh)} devices{in_parts}; set "
            f"--config.train.batch_size={-(-batch // together) * together}{shared if enough else ''}."
        )


def model_flops(config: Config, program: StepProgram, traced: Any, arguments: tuple[Any, ...]) -> int:
    """Floating-point operations of a step of the model, those counted once that are done again to save memory.

    Args:
        config: of the run.
        program: its step.
        traced: the step's jaxpr, which says it where nothing is recomputed.
        arguments: of the step, as they are or described.
    """
    plain = dataclasses.replace(config, model=as_counted(config.model))
    if plain == config:
        return count_traced(traced)
    return count_flops(describe_step(plain, program.mesh).step, *arguments)


class CompiledStep:
    """A jitted step for batches of one shape."""

    def __init__(self, step: Any, *arguments: Any):
        """Trace and compile `step` for (state, frozen, names, batch): arrays, or their descriptions with shardings."""
        traced = step.trace(*arguments)
        self.traced = traced.jaxpr
        self._batch = _shapes(arguments[-1])
        self._step = traced.lower().compile()

    def __call__(self, state: Any, frozen: Any, names: Any, batch: Batch) -> Any:
        """Run it.

        Raises:
            UserError: the batch is of other shapes; to compile again would take minutes that nobody sees.
        """
        if (shapes := _shapes(batch)) != self._batch:
            raise UserError(
                f"the step was compiled for batches of {self._batch} and met one of {shapes}; a run compiles once: "
                "make every batch alike (train.batch_size, data.crop_size, data.classes_per_image)."
            )
        return self._step(state, frozen, names, batch)


def _shapes(batch: Batch) -> str:
    """As in "image uint8[4,384,384,3], label int32[4,384,384], class_ids int32[4,171]"."""
    return ", ".join(
        f"{name} {jnp.dtype(array.dtype).name}[{','.join(map(str, array.shape))}]"
        for name, array in zip(Batch._fields, batch, strict=True)
        if array is not None
    )
