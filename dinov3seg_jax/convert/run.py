"""A conversion from end to end: recognise, plan, then one tensor at a time into its place, whole or not at all."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dinov3seg_jax.convert.recognise import Recognised, recognise
from dinov3seg_jax.convert.sources import Source, hash_note, open_source, sha256
from dinov3seg_jax.convert.tables.rules import RULES_VERSION, Plan, carry_out, plan_rules
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import expanded, write_whole
from dinov3seg_jax.folders import copy_tree
from dinov3seg_jax.places import check_writable, is_remote
from dinov3seg_jax.scratch import scratch
from dinov3seg_jax.store import safetensors
from dinov3seg_jax.store.converted import (
    MANIFEST_FILE,
    WEIGHTS_FILE,
    Manifest,
    is_converted,
    write_manifest,
)
from dinov3seg_jax.store.run import TOKENIZER_FILE
from dinov3seg_jax.text.tips_tokenizer import TipsTokenizer

NO_TOKENIZER = (
    "no tokenizer came with the weights; convert again with TIPS's tokenizer.model among --source, or name it in "
    "--config.model.tokenizer"
)
OURS = {WEIGHTS_FILE, MANIFEST_FILE, TOKENIZER_FILE}


def convert(
    kind: str,
    files: Sequence[str | Path],
    out: str | Path,
    overrides: Sequence[str] = (),
    *,
    rounded_periods: bool = False,
    take: str = "",
) -> Manifest:
    """Convert official files into a folder.

    Everything but the values is checked before a tensor is read. The folder appears when it is complete; until then
    everything is in a hidden folder beside it, which goes away whatever happens.

    Args:
        kind: a key of `dinov3seg_jax.convert.recognise.KINDS`.
        files: see `dinov3seg_jax.convert.sources.open_source`.
        out: the folder to write; an earlier conversion there is replaced, unless something else lies beside it.
        overrides: options that shapes do not tell, like "text.heads=20".
        rounded_periods: for Hugging Face's files, see `dinov3seg_jax.convert.tables.huggingface.rules`.
        take: see `dinov3seg_jax.convert.sources.open_source`.

    Raises:
        UserError: the files cannot be read or are not this kind of model, or `out` cannot be written.
    """
    out = expanded(out)
    refuse_occupied(out)
    check_writable(out)
    source = open_source(files, take)
    recognised, plan = prepare(source, kind, overrides, rounded_periods=rounded_periods)
    tokenizer = _tokenizer(source, recognised)
    try:
        if is_remote(out):
            temporary = scratch()
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            entries = _write_arrays(temporary / WEIGHTS_FILE, plan, source)
            manifest = _describe(temporary / WEIGHTS_FILE, entries, recognised, source, tokenizer)
            if tokenizer is not None:
                write_whole(temporary / TOKENIZER_FILE, tokenizer)
            write_manifest(temporary, manifest)
            temporary.chmod(0o755)  # mkdtemp's is for its owner alone
            _put_in_place(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(f"'{out}' cannot be written ({error.strerror}); choose another --out, or make room.") from None
    return manifest


def prepare(
    source: Source, kind: str, overrides: Sequence[str] = (), *, rounded_periods: bool = False
) -> tuple[Recognised, Plan]:
    """What a source is and where each of its tensors goes; no tensor is read.

    Raises:
        UserError: it is not this kind of model, or does not fit one.
    """
    recognised = recognise(source, kind, overrides, rounded_periods=rounded_periods)
    shapes = {key: tensor.shape for key, tensor in source.tensors.items()}
    try:
        return recognised, plan_rules(shapes, recognised.rows, recognised.expected)
    except UserError as error:
        raise UserError(f"'{source.files[0]}' cannot be converted: {error}") from None


def refuse_occupied(out: Path) -> None:
    """Stop before something else than an earlier conversion is overwritten.

    Raises:
        UserError: `out` is a file, or a folder that holds something else, if only the scores of those weights.
    """
    if is_converted(out) and (others := {path.name for path in out.iterdir()} - OURS):
        raise UserError(
            f"'{out}' holds '{min(others)}' beside an earlier conversion; move that away, or choose another --out."
        )
    if out.is_symlink() or (out.exists() and not (is_converted(out) or (out.is_dir() and not any(out.iterdir())))):
        raise UserError(f"'{out}' exists and is no earlier conversion; choose another --out.")


def _write_arrays(path: Path, plan: Plan, source: Source) -> dict[str, safetensors.Entry]:
    entries = safetensors.create(path, plan.shapes)
    with path.open("r+b") as file:
        for (name, position), values in carry_out(plan, lambda key: source.tensors[key].read()):
            safetensors.write_part(file, entries[name], position, values)
        os.fsync(file.fileno())
    return entries


def _tokenizer(source: Source, recognised: Recognised) -> bytes | None:
    """The content of the tokenizer's file that belongs to a text tower: one that is named, or lies beside the weights.

    Raises:
        UserError: it cannot be read, or is not this tower's.
    """
    text = recognised.model.get("text") if recognised.model.get("towers") == "tips" else None
    beside = source.files[0].with_name(TOKENIZER_FILE)
    path = source.tokenizer or (beside if beside.is_file() else None)
    if text is None and source.tokenizer is not None:
        raise UserError(f"'{source.tokenizer}' is a tokenizer, and these weights read no text with it; leave it out.")
    if text is None or path is None:
        return None
    return TipsTokenizer(path, text["vocab_size"]).content


def _describe(
    path: Path,
    entries: dict[str, safetensors.Entry],
    recognised: Recognised,
    source: Source,
    tokenizer: bytes | None,
) -> Manifest:
    digests = {file: sha256(file) for file in source.files}
    notes = [note for file, digest in digests.items() if (note := hash_note(file, digest))]
    if tokenizer is None and recognised.model.get("towers") == "tips" and "text" in recognised.model:
        notes.append(NO_TOKENIZER)
    return Manifest(
        kind=recognised.kind,
        name=recognised.name,
        rules_version=RULES_VERSION,
        sources=[{"name": file.name, "sha256": digest} for file, digest in digests.items()],
        notes=[*recognised.notes, *notes],
        model=recognised.model,
        arrays={
            name: {"shape": list(entry.shape), "sha256": array_sha256(path, entry)} for name, entry in entries.items()
        },
        config=recognised.config,
        files={} if tokenizer is None else {TOKENIZER_FILE: hashlib.sha256(tokenizer).hexdigest()},
    )


def array_sha256(path: Path, entry: safetensors.Entry) -> str:
    """Checksum of one array's bytes on disk, in hex."""
    digest = hashlib.sha256()
    for block in safetensors.blocks(path, entry):
        digest.update(block)
    return digest.hexdigest()


def _put_in_place(temporary: Path, out: Path) -> None:
    """Rename; an earlier conversion steps aside first, and comes back if that fails.

    In a bucket, which cannot rename, the manifest says that all is there: it goes first and comes last.
    """
    if is_remote(out):
        (out / MANIFEST_FILE).unlink(missing_ok=True)
        copy_tree(temporary, out, last=MANIFEST_FILE)
        return
    if not is_converted(out):
        os.replace(temporary, out)
        return
    aside = temporary.with_name(f"{temporary.name}.old")
    os.replace(out, aside)
    try:
        os.replace(temporary, out)
    except OSError:
        os.replace(aside, out)
        raise
    shutil.rmtree(aside, ignore_errors=True)
