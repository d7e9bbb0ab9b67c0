"""What other processes traced, beside what they compiled: a program that is found is neither traced nor lowered again.

A start from compiled programs would spend half its time on finding out, in Python, which of them it needs.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.export

from dinov3seg_jax.cache.programs import ENTRIES, kept_in
from dinov3seg_jax.files import write_whole

Traced = Callable[..., Any]


def remember(question: str, find_answer: Callable[[], bytes]) -> bytes:
    """The answer of an earlier process, where programs are kept on disk; else that of `find_answer`, which is kept.

    Args:
        question: everything that the answer depends on, but for this package's source, the versions of JAX and Flax,
            JAX's settings and the kind of device, which are part of every question.
        find_answer: called if nobody asked before, or what was kept is damaged.
    """
    folder = kept_in()
    if folder is None:
        return find_answer()
    path = folder / (hashlib.sha256(f"{_circumstances()}\n{question}".encode()).hexdigest() + ENTRIES[1:])
    try:
        return zlib.decompress(path.read_bytes())
    except (OSError, zlib.error):
        answer = find_answer()
    with contextlib.suppress(OSError):
        if _read_source() == SOURCE:
            write_whole(path, zlib.compress(answer, 1))
    return answer


def traced_once(about: Any) -> Callable[[Traced], Traced]:
    """Let a function, when it is traced, be replaced by what an earlier process traced; for use below `jax.jit`.

    The arguments have to be arrays in tuples, dicts, and named tuples that `jax.export` knows; keywords are static.
    Where programs are not kept on disk, or JAX cannot export this one, the function is traced as it is.

    Args:
        about: what the function depends on beside its arguments, with a `repr` that says all of it, such as a config.
    """

    def decorate(function: Traced) -> Traced:
        @functools.wraps(function)
        def run(*arguments: Any, **static: Any) -> Any:
            own = functools.partial(function, **static)
            if kept_in() is None:
                return own(*arguments)
            shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
            question = f"{function.__module__} {function.__qualname__} {static} {about!r} {shapes}"
            try:
                program = remember(question, lambda: bytes(jax.export.export(jax.jit(own))(*shapes).serialize()))
            except (ValueError, NotImplementedError):  # it calls what JAX does not promise to know later
                return own(*arguments)
            return jax.export.deserialize(bytearray(program)).call(*arguments)

        return run

    return decorate


def _circumstances() -> str:
    """All that every answer depends on, as it is now: settings change, and differ between threads."""
    return f"{SOURCE} {_platform()} {sorted(jax.config.values.items())}"


@functools.cache
def _platform() -> str:
    versions = [importlib.metadata.version(package) for package in ("jax", "jaxlib", "flax")]
    device = jax.devices()[0]  # Pallas traces other kernels for other generations of TPUs
    return f"{versions} {device.platform} {device.device_kind} {device.client.platform_version}"


def _read_source() -> str:
    package = Path(__file__).parents[1]
    source = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        source.update(f"{path.relative_to(package)}".encode() + path.read_bytes())
    return source.hexdigest()


SOURCE = _read_source()  # as this process begins to import it; what is edited later, this process may not run
