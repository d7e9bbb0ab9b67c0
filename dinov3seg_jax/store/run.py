"""The folder of a run: `config.json`, and `checkpoints/<step>`, of which the newest step that is whole counts.

What its steps share is in `frozen/` (`frozen.py`).
"""

import dataclasses
import functools
import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from dinov3seg_jax.config import Config, ModelConfig
from dinov3seg_jax.config_files import from_dict
from dinov3seg_jax.errors import UserError, is_outage, reason
from dinov3seg_jax.files import expanded, write_whole
from dinov3seg_jax.folders import children, files_below, move, remove
from dinov3seg_jax.processes import check_once, is_first
from dinov3seg_jax.store.checksums import CHECKSUMS_FILE
from dinov3seg_jax.store.evaluations import best_of, read_evaluations
from dinov3seg_jax.store.frozen import packs_of, wrong_with

if TYPE_CHECKING:
    import jax

    from dinov3seg_jax.models.parameters import AbstractParameters, Parameters

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.model"  # where the text tower's is no part of this program
STEPS_FOLDER = "checkpoints"
NEWEST, BEST = "newest", "best"  # names of steps
FOREIGN = {"model_type", "architectures", "architecture"}  # in a config.json of Hugging Face's, or of timm's
UNFINISHED = ".unfinished"  # ends the names of files that say so of steps
DAMAGED = ".damaged"  # ends the names of steps that were passed over


class RunFolder:
    """A folder that training wrote. What it says of itself is read when it is first asked for."""

    kind: Literal["run"] = "run"
    checksums: Mapping[str, str] = MappingProxyType({})  # of single arrays: a run keeps none

    def __init__(self, path: str | Path, step: str = NEWEST):
        """Take its path; it need not exist yet. `step` is NEWEST, BEST or a number: whose weights are meant."""
        self.path = expanded(path)
        self.step = step

    def __str__(self) -> str:
        """As reports name it."""
        return str(self.path) if self.step == NEWEST else f"{self.path} (step {self.number})"

    @property
    def number(self) -> int | None:
        """The step that is meant; of the newest, the one if it is whole, and None where there is none at all.

        Raises:
            UserError: there is no such step.
        """
        steps = finished_steps(self.path / STEPS_FOLDER)
        if self.step == NEWEST:
            return max(steps, default=None)
        read_config(self.path)  # which says what is wrong with the folder, if something is
        one = f"name newest or one of {', '.join(map(str, steps))}" if steps else "no step is finished yet"
        if self.step == BEST:
            best = best_of(read_evaluations(self.path, until=max(steps, default=0)))
            if best is None:
                raise UserError(
                    f"'{self.path}' has no best step, as nothing was scored while it trained (train.eval_every); {one}."
                )
            if best.step not in steps:
                raise UserError(f"the best step of '{self.path}' is {best.step}, which is gone; {one}.")
            return best.step
        if not self.step.isdecimal() or int(self.step) not in steps:
            raise UserError(f"'{self.path}' has no step '{self.step}'; {one}{', or best' * bool(steps)}.")
        return int(self.step)

    @property
    def results(self) -> Path:
        """Where scores of these weights are written."""
        return self.path if self.step == NEWEST else self.path / f"step_{self.number}"

    @functools.cached_property
    def config(self) -> Config:
        """What the run was started with, and the tokenizer that lies in its folder.

        Raises:
            UserError: the folder is not that of a run, or its config cannot be read.
        """
        config, tokenizer = read_config(self.path), self.path / TOKENIZER_FILE
        if not tokenizer.is_file():
            return config
        return dataclasses.replace(config, model=dataclasses.replace(config.model, tokenizer=str(tokenizer)))

    @property
    def fingerprint(self) -> str:
        """Tells these weights from others: a digest of the newest step's own checksums; nothing else is read.

        They are those of its reference too, which names what is frozen by its content.

        A folder without a step has a digest too, and whoever reads its arrays says what is wrong.
        """
        step = "" if self.number is None else str(self.number)
        return digest_of(self.path / STEPS_FOLDER / step / CHECKSUMS_FILE)

    def files(self) -> list[Path]:
        """All files that the weights depend on."""
        steps, absolute = self.path / STEPS_FOLDER, self.path.resolve() / STEPS_FOLDER
        numbers = finished_steps(steps) if self.step == NEWEST else [self.number]
        where = [steps] if self.step == NEWEST else [steps / str(self.number)]
        where += sorted({pack for number in numbers for pack in _readable_packs(absolute / str(number))})
        held = [path for folder in where for path in files_below(folder).values()]
        return [self.path / CONFIG_FILE, *held]

    def arrays(
        self, beginnings: tuple[str, ...] = ("",), shardings: "Mapping[str, jax.sharding.Sharding] | None" = None
    ) -> "Parameters":
        """Parameters of the step, the updates of "lora" added to their matrices.

        Args:
            beginnings: of the names of those that are wanted, such as "text/"; default all.
            shardings: by name; default the first device.

        Raises:
            UserError: there is no whole step, or one that does not fit the config.
        """
        from dinov3seg_jax.models.low_rank import describe_updates, merge
        from dinov3seg_jax.store.arrays import read_on_first_device, read_sharded

        described = _describe(self.config.model)
        if self.config.train.finetune == "lora":
            described |= describe_updates(described, self.config.train.lora_rank)
        step = self.whole_step()
        if shardings is None:
            wanted = {name: leaf for name, leaf in described.items() if name.startswith(beginnings)}
            return merge(read_on_first_device(step, wanted))
        held = merge(read_sharded(step, described, _with_updates(shardings, described)))
        return {name: value for name, value in held.items() if name.startswith(beginnings)}

    def progress(self) -> dict[str, Any]:
        """What the step says of the run: "data", where its stream is, and "train_seconds".

        Raises:
            UserError: there is no whole step.
        """
        from dinov3seg_jax.store.arrays import read_progress

        return read_progress(self.whole_step())

    def whole_step(self) -> Path:
        """The folder of the step, whole; of the newest, the newest that is.

        Raises:
            UserError: there is none.
        """
        if self.step == NEWEST:
            return newest_step(self.path)
        folder = self.path.resolve() / STEPS_FOLDER / str(self.number)  # TensorStore refuses ".."
        check_once(functools.partial(_refuse_damaged, folder))
        return folder


def _with_updates(
    shardings: "Mapping[str, jax.sharding.Sharding]", described: "AbstractParameters"
) -> "Mapping[str, jax.sharding.Sharding]":
    """The same, and every device has all of what it does not name: low-rank updates."""
    from jax.sharding import NamedSharding, PartitionSpec

    any_one = next(iter(shardings.values()))
    everywhere = NamedSharding(any_one.mesh, PartitionSpec()) if isinstance(any_one, NamedSharding) else any_one
    return {name: everywhere for name in described} | dict(shardings)


def is_run(folder: Path) -> bool:
    """Whether a folder is one that training began to write."""
    return (folder / CONFIG_FILE).is_file()


def write_config(workdir: Path, config: Config) -> None:
    """Record what a run was started with; its tokenizer's file too, so that the run is whole by itself."""
    workdir.mkdir(parents=True, exist_ok=True)
    if config.model.tokenizer:
        write_whole(workdir / TOKENIZER_FILE, expanded(config.model.tokenizer).read_bytes())
    write_whole(workdir / CONFIG_FILE, (json.dumps(dataclasses.asdict(config), indent=2) + "\n").encode())


def read_config(workdir: Path) -> Config:
    """The config a run was started with; see `RunFolder.config`."""
    path = workdir / CONFIG_FILE
    if workdir.is_file():
        raise UserError(f"checkpoint '{workdir}' is a file; name a folder that training wrote, or `dinov3seg convert`.")
    if not workdir.is_dir():
        raise UserError(f"checkpoint folder '{workdir}' does not exist; name one that training wrote.")
    if not is_run(workdir):
        raise UserError(f"'{workdir}' is not a run's folder (it has no {CONFIG_FILE}); name one that training wrote.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no options")
        if values.keys() & FOREIGN:
            raise UserError(f"'{workdir}' holds a model of another program; name what `dinov3seg convert` made of it.")
        return from_dict(values, origin=str(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); check its permissions.") from None
    except (ValueError, RecursionError) as error:  # JSON's, or bytes that are no text
        raise UserError(f"{path} is damaged ({error}); restore it or train again.") from None


def finished_steps(folder: Path) -> list[int]:
    """The steps in a run's folder of checkpoints that were finished, oldest first.

    One is when its checksums are there, which are written last. While it is being written or deleted, a file of its
    name and UNFINISHED lies beside it; where there is none, and no checksums, these were lost.
    """
    names = {path.name for path in children(folder)}
    whole = (int(name) for name in names if name.isdecimal())
    return sorted(
        step for step in whole if f"{step}{UNFINISHED}" not in names or (folder / str(step) / CHECKSUMS_FILE).is_file()
    )


def digest_of(file: Path) -> str:
    """A digest of a file; of one that cannot be read, that of nothing."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        if is_outage(error):
            raise
        return hashlib.sha256().hexdigest()


def newest_step(workdir: Path) -> Path:
    """The folder of a run's newest whole step.

    Raises:
        UserError: there is none.
    """
    folder = workdir.resolve() / STEPS_FOLDER  # TensorStore refuses ".."
    step = newest_whole(folder)
    if step is None:
        raise UserError(f"'{workdir}' holds no complete checkpoint; let training reach train.checkpoint_every steps.")
    return folder / str(step)


def newest_whole(folder: Path, put_aside: bool = False) -> int | None:
    """The newest step that matches its checksums, as the first process finds it, which has all of them go by it.

    Args:
        folder: of checkpoints.
        put_aside: rename newer steps that are damaged.

    Raises:
        UserError: there are steps, but none is whole.
    """
    import numpy as np
    from jax.experimental.multihost_utils import broadcast_one_to_all

    nothing, failed = -1, -2
    found, error = failed, UserError(f"no checkpoint in '{folder}' is whole; process 0 says which, and what to do.")
    if is_first():
        try:
            step = _choose(folder, put_aside)
            found = nothing if step is None else step
        except UserError as its_own:
            error = its_own
    found = int(broadcast_one_to_all(np.int32(found)))
    if found == failed:
        raise error
    return None if found == nothing else found


def _choose(folder: Path, put_aside: bool) -> int | None:
    reasons: dict[int, str] = {}
    packs: dict[Path, str | None] = {}
    back: Path | None = None  # a pack for which steps that are whole themselves were passed over
    for step in reversed(finished_steps(folder)):
        wrong = wrong_with(folder / str(step), packs)
        if wrong is None:
            _warn(folder, reasons, step, put_aside)
            return step
        reasons[step] = wrong.reason
        back = wrong.pack or back
    if not reasons:
        return None
    listed = ", ".join(f"step {step}: {reason}" for step, reason in reasons.items())
    mend = f"put '{back}' back from a copy of the run" if back else "put one back from a copy"
    raise UserError(f"no checkpoint in '{folder}' is whole ({listed}); {mend}, or delete it all to begin again.")


def _readable_packs(step: Path) -> Iterable[Path]:
    try:
        return packs_of(step)
    except (OSError, ValueError):  # whoever reads the step says so
        return ()


def _refuse_damaged(step: Path) -> None:
    wrong = wrong_with(step, {})
    if wrong is None:
        return
    others = ", ".join(str(other) for other in finished_steps(step.parent) if str(other) != step.name)
    mend = f"put '{wrong.pack}' back from a copy of the run"
    if wrong.pack is None:
        mend = f"name another step{': ' + others if others else ''}"
    raise UserError(f"checkpoint '{step}' is damaged: {wrong.reason}; {mend}.")


def _warn(folder: Path, reasons: dict[int, str], step: int, put_aside: bool) -> None:
    for damaged, wrong in reasons.items():
        kept = ""
        if put_aside:
            aside = folder / f"{damaged}{DAMAGED}"
            remove(aside)
            move(folder / str(damaged), aside)
            kept = f"; it is now '{aside}'"
        message = (
            f"WARNING: checkpoint '{folder / str(damaged)}' is damaged: {wrong}{kept}; step {step} is used instead"
        )
        print(message, file=sys.stderr, flush=True)


def _describe(model: ModelConfig) -> "AbstractParameters":
    """Shapes and types of a model's parameters, which an earlier process may have worked out."""
    import jax

    from dinov3seg_jax.cache.traced import remember

    def describe() -> bytes:
        from dinov3seg_jax.models.graph import ALL_FROZEN, build

        shapes = {name: [leaf.shape, leaf.dtype.name] for name, leaf in build(model, ALL_FROZEN)[1].items()}
        return json.dumps(shapes).encode()

    said = json.loads(remember(f"parameters of {model}", describe))
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in said.items()}
