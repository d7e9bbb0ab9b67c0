"""Compiled programs on disk, so that only the first process on a machine waits for them.

JAX writes and finds them, by everything that a program depends on; here is said where, and what is cleared away.
"""

import contextlib
import hashlib
import os
import platform
import time
import warnings
import zlib
from pathlib import Path

import jax

from dinov3seg_jax.places import cache_folder

PROGRAMS = "programs"  # below the folder of caches
LIMIT = 2 * 2**30  # bytes; what was used longest ago goes first
ENTRIES = "*-cache"  # JAX's names
LOOKED = ".looked"  # its time: what is older was looked at
AUTOTUNED = "xla_gpu_per_fusion_autotune_cache_dir/**/*"  # beside them: the fastest kernels XLA found on a GPU
ZLIB = b"\x78"  # how the entries begin, where JAX has no better compressor
EARLIER = 1_000_000_000  # nanoseconds by which a file's time may lag behind the clock


_kept_in: Path | None = None  # this process


def keep_programs() -> Path | None:
    """Let JAX keep every program that this process compiles, and use those of earlier ones.

    The folder is private to the user, as whoever can write to it can run code: `programs` in the folder that
    `DINOV3SEG_CACHE` names, below a name for this kind of processor. Where JAX was told a folder already, as by
    `JAX_COMPILATION_CACHE_DIR`, its settings stay as they are. To be called before anything is compiled.

    Returns:
        The folder; None where there is none: the cache is off, its folder cannot be made, or is or can be written by
        another user. One that cannot be written, or a full disk, costs time and nothing else.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return Path(jax.config.values["jax_compilation_cache_dir"])
    global _kept_in
    base = cache_folder()
    if base is None:
        return None
    folder = base.absolute() / PROGRAMS / _processor()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return None
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        return None
    tidy(folder, LIMIT)
    _kept_in = folder
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # JAX goes on without what it cannot read or write.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    return folder


def kept_in() -> Path | None:
    """The folder of this process's programs, where `keep_programs` chose one, for what else may be kept there.

    Its name has to end as `ENTRIES`, and zlib to have compressed it, so that `tidy` knows it.
    """
    return _kept_in


def tidy(folder: Path, limit: int) -> None:
    """Delete damaged programs, which JAX would never write again, then the longest unused beyond `limit` bytes.

    JAX writes in place, so that a killed process or a full disk leaves halves. Each program is looked at once. What
    XLA found out about kernels counts and goes like programs, but is never damaged, as XLA renames whole files.
    """
    looked = folder / LOOKED
    now, since = time.time_ns(), 0
    with contextlib.suppress(OSError):
        since = looked.stat().st_mtime_ns
    kept = []
    for path in (*folder.glob(ENTRIES), *folder.glob(AUTOTUNED)):
        with contextlib.suppress(OSError):  # another process deleted it; or it cannot be read or deleted, and counts
            stat = path.stat()
            kept.append((path, stat))
            if stat.st_mtime_ns >= since and path.parent == folder and _is_damaged(path):
                path.unlink()
                kept.pop()
    kept.sort(key=lambda entry: max(entry[1].st_atime_ns, entry[1].st_mtime_ns))
    total = sum(stat.st_size for _, stat in kept)
    for path, stat in kept:
        if total <= limit:
            break
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            total -= stat.st_size
    with contextlib.suppress(OSError):
        looked.touch()
        os.utime(looked, ns=(now - EARLIER, now - EARLIER))


def _is_damaged(path: Path) -> bool:
    content = path.read_bytes()
    if content and not content.startswith(ZLIB):
        return False  # another compressor's
    try:
        zlib.decompress(content)
    except zlib.error:
        return True
    return False


def _processor() -> str:
    """A name for this kind of processor: a program that was compiled for another one may crash."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    abilities = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(f"{platform.machine()} {abilities}".encode()).hexdigest()[:16]
