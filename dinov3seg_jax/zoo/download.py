"""One file from an address, whole and checked or not at all; what a killed process got is gone on with.

The bytes go to `NAME.partial`, and beside it stands what they are the beginning of. The next call asks for the rest,
on the condition that the file has not changed. Nothing has the name `NAME` before its checksum was compared.

HTTP is `huggingface_hub`'s session: its proxies, its offline mode, and no token for another host than the first.
"""

import json
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tqdm import tqdm

from dinov3seg_jax.convert.sources import sha256
from dinov3seg_jax.errors import UserError, one_line, reason
from dinov3seg_jax.files import write_whole

if TYPE_CHECKING:
    import httpx2

ATTEMPTS = 5  # in a row that bring nothing
WAIT = 1.0  # seconds before the second attempt; each later wait is twice as long
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 2**16
SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")
BUSY = (429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Address:
    """Where a file is, and what is known of it."""

    url: str
    token: str = ""  # for the host of `url` alone
    size: int = 0  # bytes; 0: not known
    sha256: str = ""  # in hex; empty: not known

    @property
    def shown(self) -> str:
        """The address without what a signed link keeps secret."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@dataclass(frozen=True)
class _Whole:
    """What a partial file is the beginning of."""

    shown: str
    size: int = 0
    version: str = ""  # its ETag or date, by which a server tells whether it has changed
    sha256: str = ""  # the server's own


class Refused(Exception):
    """The server gives the file to nobody who asks like this."""

    def __init__(self, status: int, gated: bool):
        super().__init__(str(status))
        self.status, self.gated = status, gated


class _Again(Exception):
    """What another attempt may mend."""


def download(address: Address, target: Path) -> None:
    """Bring a file; one that is there already was checked when it came.

    Args:
        address: where from.
        target: the file to write; its folder exists.

    Raises:
        UserError: the server cannot be reached or has no such file, there is no room, or the content is not what it
            should be.
        Refused: the server answers 401 or 403.
    """
    if target.is_file():
        return
    partial, about = (target.with_name(target.name + ending) for ending in (".partial", ".partial.json"))
    failures = 0
    while True:
        before = _length(partial)
        try:
            whole = _go_on(address, partial, about)
            break
        except _Again as error:
            failures = 1 if _length(partial) > before else failures + 1
            if failures == ATTEMPTS:
                raise UserError(
                    f"{address.shown} cannot be had now ({error}); check the connection and run the same command "
                    "again: it goes on where it stopped."
                ) from None
            time.sleep(WAIT * 2 ** (failures - 1))
        except OSError as error:
            raise UserError(
                f"'{partial}' cannot be written ({reason(error)}); make room and run the same command again: it goes "
                "on where it stopped."
            ) from error
    try:
        _check(address, whole, partial)
    except UserError:
        partial.unlink()
        about.unlink()
        raise
    os.replace(partial, target)
    about.unlink()


def _go_on(address: Address, partial: Path, about: Path) -> _Whole:
    """One attempt at what is missing.

    Raises:
        _Again: the connection broke, or the server is busy.
    """
    import httpx2
    from huggingface_hub import get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    begun, known = _length(partial), _read(about, address)
    if known.size and begun == known.size:
        return known
    headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {address.token}"} if address.token else {})
    if begun and known.version:
        headers |= {"Range": f"bytes={begun}-", "If-Range": known.version}
    try:
        with get_session().stream(
            "GET", address.url, headers=headers, timeout=TIMEOUT, follow_redirects=True
        ) as response:
            begun, whole = _answer(address, response, begun, known)
            if begun and (whole.size, whole.sha256) != (known.size, known.sha256):
                partial.unlink()  # of a file that has changed since
                raise _Again("the file has changed")
            refuse_without_room(partial.parent, whole.size - begun)
            write_whole(about, json.dumps(asdict(whole)).encode())
            _write(response, partial, begun, whole, address)
    except OfflineModeIsEnabled:
        raise UserError(
            f"{address.shown} is not asked, as HF_HUB_OFFLINE is set; unset it, or name files with --source."
        ) from None
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise UserError(f"'{address.shown}' is no address ({one_line(error, 100)}); check it.") from None
    except (httpx2.TransportError, httpx2.StreamError, httpx2.TooManyRedirects) as error:
        raise _Again(one_line(error, 100) or type(error).__name__) from None
    if whole.size and _length(partial) != whole.size:
        raise _Again("the connection ended early")
    return whole


def _answer(address: Address, response: "httpx2.Response", begun: int, known: _Whole) -> tuple[int, _Whole]:
    """Where in the file the answer begins, and what the file is."""
    said: dict[str, str] = {}
    for one in (*response.history, response):  # the hub says a checksum where it sends us on
        said |= {key: value for key, value in one.headers.items() if key.startswith("x-")}
    if response.status_code in BUSY:
        raise _Again(f"the server answers {response.status_code}")
    if response.status_code in (401, 403):
        raise Refused(response.status_code, said.get("x-error-code") == "GatedRepo")
    own = SHA256.fullmatch(said.get("x-linked-etag", ""))
    digest = own[1] if own else ""
    if address.sha256 and digest and digest != address.sha256:
        raise UserError(
            f"{address.shown} has another content than was published (sha256 {digest[:12]}..., not "
            f"{address.sha256[:12]}...); take it from elsewhere and name it with --source."
        )
    headers = response.headers
    version = headers.get("etag") or headers.get("last-modified") or ""
    version = "" if version.startswith("W/") else version
    if response.status_code == 206 and (part := RANGE.fullmatch(headers.get("content-range", ""))):
        if int(part[1]) != begun:
            raise _Again("the server answers with another part")
        return begun, _Whole(address.shown, int(part[2]), version or known.version, digest)
    if response.status_code != 200:
        raise UserError(
            f"{address.shown} cannot be had (the server answers {response.status_code}); check the address."
        )
    length = headers.get("content-length", "")
    return 0, _Whole(address.shown, int(length) if length.isdecimal() else 0, version, digest)


def _write(response: "httpx2.Response", partial: Path, begun: int, whole: _Whole, address: Address) -> None:
    bar: Any = tqdm(
        total=whole.size or None,
        initial=begun,
        unit="B",
        unit_scale=True,
        desc=Path(address.shown).name,
        disable=None,  # where nobody watches
    )
    with partial.open("ab") as file, bar:
        file.truncate(begun)
        for block in response.iter_raw(BLOCK):
            file.write(block)
            bar.update(len(block))


def refuse_without_room(folder: Path, needed: int) -> None:
    """Stop before a disk is filled up.

    Args:
        folder: on that disk; it exists.
        needed: bytes.

    Raises:
        UserError: there is less room.
    """
    if (free := shutil.disk_usage(folder).free) < needed:
        raise UserError(
            f"'{folder}' has {free / 1e9:.2f} GB of room and {needed / 1e9:.2f} GB are needed; make room, or set "
            "DINOV3SEG_MODELS to a folder that has it."
        )


def _check(address: Address, whole: _Whole, partial: Path) -> None:
    expected = address.sha256 or whole.sha256
    if expected and (digest := sha256(partial)) != expected:
        raise UserError(
            f"what {address.shown} gave is damaged or another file (sha256 {digest[:12]}..., not {expected[:12]}...) "
            "and is removed; run the same command again, or name a good file with --source."
        )
    if not expected and address.size and _length(partial) != address.size:
        raise UserError(
            f"what {address.shown} gave has {_length(partial):,} bytes, not {address.size:,}, and is removed; run the "
            "same command again, or name a good file with --source."
        )


def _read(about: Path, address: Address) -> _Whole:
    """What is known of the file that a partial one is of; nothing, where that is of another address."""
    try:
        known = _Whole(**json.loads(about.read_bytes()))
    except (OSError, ValueError, TypeError):
        return _Whole("")
    return known if known.shown == address.shown else _Whole("")


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
