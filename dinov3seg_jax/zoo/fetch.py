"""A released model by its name, once: its files are brought, checked and converted, and the conversion is kept."""

import contextlib
import fcntl
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dinov3seg_jax.convert.run import convert
from dinov3seg_jax.convert.sources import TORCH_SUFFIXES, sha256
from dinov3seg_jax.errors import UserError, did_you_mean, note, reason
from dinov3seg_jax.files import expanded
from dinov3seg_jax.places import local_copy
from dinov3seg_jax.store.converted import Manifest, read_manifest
from dinov3seg_jax.store.kept import is_kept, models_folder
from dinov3seg_jax.store.released import RELEASED, PublishedFile, Released
from dinov3seg_jax.store.run import TOKENIZER_FILE
from dinov3seg_jax.zoo.download import Address, Refused, download, refuse_without_room

WORK = ".fetching"  # in the folder of models: what is not whole yet
SPACES = "spaces/"
INSTALL = "pip install 'dinov3seg_jax[hub]'"
READERS = dict.fromkeys(TORCH_SUFFIXES, ("torch", "convert")) | {".model": ("sentencepiece", "tips")}  # and the extra


def fetch(name: str, sources: Sequence[str] = (), agreed: Callable[[str], bool] = lambda terms: False) -> Path:
    """Bring a released model, and keep it; one that is kept already is left as it is.

    Args:
        name: a key of `store.released.RELEASED`.
        sources: files or addresses of its files, where they should not come from where they are published.
        agreed: is asked whether the terms of a model are accepted, where they must be.

    Returns:
        The folder where it is kept.

    Raises:
        UserError: there is no such model, its terms are not accepted, a file cannot be had or is not what was
            published, or it cannot be kept.
    """
    if name not in RELEASED:
        raise UserError(f"there is no model '{name}'{did_you_mean(name, RELEASED)}; dinov3seg models lists them.")
    row, folder = RELEASED[name], models_folder()
    if is_kept(name):
        if sources:
            raise UserError(f"'{name}' is kept already; delete '{folder / name}' to take it from other files.")
        return folder / name
    if not sources:
        _refuse_without_address(name, row)
    _refuse_without_readers(sources or [file.name for file in row.files])
    if row.accept and not agreed(row.accept):
        raise UserError(
            f"'{name}' must not be fetched before its terms are accepted ({row.accept}); read them and add "
            "--accept-licence."
        )
    try:
        work = folder / WORK / name
        work.parent.mkdir(parents=True, exist_ok=True)
        with _alone(work.with_suffix(".lock"), name):
            if not is_kept(name):
                refuse_without_room(work.parent, row.memory)  # of the conversion
                files = _bring(name, row, sources, work)
                _keep(name, row, files, work, folder / name)
                shutil.rmtree(work)
    except OSError as error:
        raise UserError(
            f"'{folder}' cannot be written ({reason(error)}); make room, or set DINOV3SEG_MODELS to another folder."
        ) from None
    return folder / name


def _refuse_without_address(name: str, row: Released) -> None:
    if row.files and all(file.repository or file.address for file in row.files):
        return
    named = " ".join(file.name for file in row.files) or "FILE"
    how = "is handed out at" if row.gated else "has to be downloaded by hand from"
    raise UserError(f"'{name}' {how} {row.page}; then run dinov3seg fetch {name} --source {named} (files or links).")


@contextlib.contextmanager
def _alone(path: Path, name: str) -> Iterator[None]:
    """Only one process fetches a model; another waits, and finds it kept. A killed one lets go."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(f"another process fetches '{name}'; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _bring(name: str, row: Released, sources: Sequence[str], work: Path) -> list[Path]:
    """The files of a release on this disk, checked."""
    if sources:
        return [_take(name, row, source, work / str(number)) for number, source in enumerate(sources)]
    return [_of_release(name, row, file, work / "published") for file in row.files]


def _of_release(name: str, row: Released, file: PublishedFile, folder: Path) -> Path:
    if file.address:
        return _from(name, row, Address(file.address, size=file.size, sha256=file.sha256), folder / file.name)
    _refuse_without_hub()
    from huggingface_hub import constants, get_token, hf_hub_url, try_to_load_from_cache

    space = file.repository.startswith(SPACES)
    repository, repository_type = file.repository.removeprefix(SPACES), "space" if space else None
    cached = try_to_load_from_cache(repository, file.name, repo_type=repository_type)
    if isinstance(cached, str) and (not file.sha256 or sha256(Path(cached)) == file.sha256):
        return Path(cached)
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    url = hf_hub_url(repository, file.name, repo_type=repository_type, endpoint=endpoint)
    token = "" if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token() or ""
    return _from(name, row, Address(url, token, file.size, file.sha256), folder / file.name)


def _take(name: str, row: Released, source: str, folder: Path) -> Path:
    """A file that the user names, or an address."""
    if source.startswith(("http://", "https://")):
        file_name = Path(unquote(urlsplit(source).path)).name
        if not file_name:
            raise UserError(f"'{source}' names no file; name the address of one.")
        known = _published(row, file_name)
        return _from(name, row, Address(source, size=known.size, sha256=known.sha256), folder / file_name)
    path = local_copy(expanded(source))
    known = _published(row, path.name)
    if known.sha256 and path.is_file() and (digest := sha256(path)) != known.sha256:
        raise UserError(
            f"'{path}' is not the file that was published under its name (sha256 {digest[:12]}..., not "
            f"{known.sha256[:12]}...); name the file of '{name}' itself."
        )
    return path


def _published(row: Released, file_name: str) -> PublishedFile:
    """What is known of the file of that name; nothing, where none has it."""
    return next((file for file in row.files if file.name == file_name), PublishedFile(file_name))


def _from(name: str, row: Released, address: Address, target: Path) -> Path:
    _refuse_without_hub()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        download(address, target)
    except Refused as refused:
        if not refused.gated:
            mend = "make another token, or unset HF_TOKEN" if address.token else f"see {row.page} for another link"
            raise UserError(
                f"{address.shown} is not given to you (the server answers {refused.status}); {mend}."
            ) from None
        mend = "with this token's account" if address.token else "and make a token"
        raise UserError(
            f"'{name}' is gated; ask for it at {row.page} {mend}, then run HF_TOKEN=YOUR_TOKEN dinov3seg fetch {name}."
        ) from None
    return target


def _refuse_without_hub() -> None:
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise UserError(f"downloads need huggingface_hub; run {INSTALL}, or name files with --source.") from None


def _refuse_without_readers(files: Sequence[str]) -> None:
    """Say what a conversion would say, before gigabytes are downloaded for it."""
    for file in map(Path, (urlsplit(file).path for file in files)):
        module, extra = READERS.get(file.suffix, ("", ""))
        if module and importlib.util.find_spec(module) is None:
            raise UserError(
                f"{file.name} can only be read with {module}; run pip install 'dinov3seg_jax[{extra}]' first."
            )


def _keep(name: str, row: Released, files: Sequence[Path], work: Path, target: Path) -> None:
    """Convert beside the place where models are kept, look at what it is, and rename."""
    made = work / "converted"
    shutil.rmtree(made, ignore_errors=True)  # of a process that was killed
    manifest = convert(row.kind, files, made)
    _refuse_other_size(name, row, manifest)
    if TOKENIZER_FILE in (file.name for file in row.files) and TOKENIZER_FILE not in manifest.files:
        raise UserError(f"'{name}' reads text with a tokenizer of its own; add its {TOKENIZER_FILE} to --source.")
    for text in manifest.notes:
        note(text)
    if target.exists():
        raise UserError(f"'{target}' exists and is no model; move it away.")
    os.replace(made, target)


def _refuse_other_size(name: str, row: Released, manifest: Manifest) -> None:
    width = manifest.model.get("vision", {}).get("dim", row.width)
    if width != row.width:
        raise UserError(
            f"'{manifest.sources[0]['name']}' holds another model than '{name}', {width} wide and not {row.width}; "
            "name the files of that model."
        )


def unchecked(name: str) -> dict[str, str]:
    """Files of a kept model that no published checksum is known of: the sha256 of each, by its name.

    Raises:
        UserError: the model's folder is damaged.
    """
    known = {file.sha256 for file in RELEASED[name].files}
    manifest = read_manifest(models_folder() / name)
    used = {source["name"]: source["sha256"] for source in manifest.sources} | manifest.files
    return {file: digest for file, digest in used.items() if digest not in known}
