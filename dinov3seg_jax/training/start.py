"""What a new run starts from: parts that folders hold, and a random draw of the rest."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from dinov3seg_jax.config import Config, ModelConfig
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import expanded
from dinov3seg_jax.models.graph import build, initialize
from dinov3seg_jax.models.low_rank import draw_updates
from dinov3seg_jax.models.parameters import Parameters
from dinov3seg_jax.processes import say
from dinov3seg_jax.store.converted import parts, refuse_other_model
from dinov3seg_jax.store.folder import open_folder
from dinov3seg_jax.store.run import TOKENIZER_FILE, RunFolder, digest_of
from dinov3seg_jax.store.starting import folders_in
from dinov3seg_jax.training.finetune import updates_of

ENCODERS = ("vision", "text", "sam")  # sections of ModelConfig and first words of parameter names


def first_parameters(config: Config, shardings: Mapping[str, jax.sharding.Sharding]) -> Parameters:
    """Every parameter of a new run, and a line of output for each place they come from.

    Args:
        config: its `init_from` names run folders and converted folders, separated by commas.
        shardings: by parameter name. Each device reads its own slice of what folders hold; what is drawn stays on the
            host.

    Raises:
        UserError: a folder cannot be read or belongs to a model of other encoders, or two hold the same part.
    """
    _, described = build(config.model)
    found: Parameters = {}
    for name in folders_in(config.init_from):
        folder = open_folder(name)
        if folder.kind == "converted":
            refuse_other_model(name, folder.manifest, config.model, described)
            held = folder.arrays(shardings=shardings)
        else:
            held = _from_run(folder, config.model, shardings)
        if doubles := parts(found.keys() & held.keys()):
            raise UserError(f"init_from '{name}' holds {doubles[0]}, as a folder before it does; name one of them.")
        found |= held
        say(f"from {name}: {', '.join(parts(held))}")
    missing = described.keys() - found.keys()
    if missing:
        say(f"drawn at random: {', '.join(parts(missing))}")
    drawn = initialize(_without_towers(config.model, missing), jax.random.key(config.seed)) if missing else {}
    updates = updates_of(described, config.train)
    if updates:
        numbers = sum(leaf.size for leaf in updates.values())
        say(f"added: low-rank updates of {len(updates) // 2} stacks of matrices, {numbers:,} numbers")
    first = {name: found[name] if name in found else drawn[name] for name in described}
    return first | draw_updates(updates, jax.random.key(config.seed))


def with_tokenizer(config: Config) -> Config:
    """The config with the tokenizer's file, where its towers need one: the run's own, or one beside first weights.

    Raises:
        UserError: a run that was begun has another one.
    """
    if config.model.towers != "tips":
        return config
    own, given = expanded(config.workdir) / TOKENIZER_FILE, config.model.tokenizer
    if given and own.is_file() and expanded(given).is_file() and digest_of(expanded(given)) != digest_of(own):
        raise UserError(f"'{given}' is not the tokenizer that the run in '{config.workdir}' began with; leave it out.")
    if given:
        return config
    places = [open_folder(name).config.model.tokenizer for name in folders_in(config.init_from)]
    found = next(filter(None, [str(own) if own.is_file() else "", *places]), "")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, tokenizer=found))


def _from_run(folder: RunFolder, model: ModelConfig, shardings: Mapping[str, jax.sharding.Sharding]) -> Parameters:
    """Everything of a run of this model; of a run that differs beyond its encoders, those alone."""
    theirs = folder.config.model
    if theirs.towers != model.towers:
        raise UserError(
            f"init_from '{folder.path}' is a run with model.towers={theirs.towers}, not {model.towers}; set "
            f"--config.model.towers={theirs.towers}, or name weights of this model."
        )
    equal = [encoder for encoder in ENCODERS if getattr(theirs, encoder) == getattr(model, encoder)]
    if other := next((encoder for encoder in ("vision", "text") if encoder not in equal), None):
        held, ours = (dataclasses.asdict(getattr(of, other)) for of in (theirs, model))
        option = next(name for name in held if held[name] != ours[name])
        raise UserError(
            f"init_from '{folder.path}' is a run with model.{other}.{option}={held[option]!r}, not {ours[option]!r}; "
            f"set --config.model.{other}.{option}={held[option]}, or name weights of this model."
        )
    somewhere = next(iter(shardings.values()))
    _, described = build(theirs)
    held = folder.arrays(shardings={name: shardings.get(name, somewhere) for name in described})
    if dataclasses.replace(theirs, tokenizer=model.tokenizer) == model:
        return held
    return {name: held[name] for name in held if name in shardings and name.split("/")[0] in equal}


def _without_towers(model: ModelConfig, missing: Iterable[str]) -> ModelConfig:
    """The model with one block in each tower of which nothing is missing, so that it costs next to nothing to draw."""
    needed = {name.split("/")[0] for name in missing}
    towers: dict[str, Any] = {
        "vision": dataclasses.replace(model.vision, depth=1, head_blocks=min(model.vision.head_blocks, 1)),
        "text": dataclasses.replace(model.text, depth=1),
        "sam": dataclasses.replace(model.sam, depth=1, global_blocks=()),
    }
    return dataclasses.replace(model, **{name: tower for name, tower in towers.items() if name not in needed})
