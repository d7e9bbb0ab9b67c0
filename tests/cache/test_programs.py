"""The second process on a machine finds the programs of the first; whatever is wrong with the disk only costs time."""

import json
import os
import subprocess
import sys
import time
import zlib

import jax
import pytest

from dinov3seg_jax.cache import programs
from dinov3seg_jax.cache.programs import keep_programs, tidy
from dinov3seg_jax.places import VARIABLE

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)
COMPILE = """
import json, resource, sys
import jax
from dinov3seg_jax.cache.programs import keep_programs
events = []
jax.monitoring.register_event_listener(lambda event, **of: events.append(event.rpartition("/")[2]))
if sys.argv[1] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
folder = keep_programs()
print(json.dumps([jax.jit(lambda x: (x * x).sum())(jax.numpy.arange(100.0)).item(), str(folder), events]))
"""


@pytest.fixture
def options(monkeypatch):
    """What JAX is set to, put back after the test."""
    monkeypatch.setattr(programs, "_kept_in", None)
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def compile_in_a_process(cache, disk="fine"):
    """Hits and misses, and the folder."""
    environment = os.environ | {VARIABLE: str(cache), "PYTHONPATH": os.getcwd()}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", COMPILE, disk], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "persistent compilation cache" not in done.stderr
    result, folder, events = json.loads(done.stdout)
    assert result == 328350
    return events.count("cache_hits"), events.count("cache_misses"), folder


@pytest.mark.slow
def test_a_later_process_compiles_nothing_even_after_the_disk_was_full(tmp_path):
    compile_in_a_process(tmp_path, "full")
    hits, misses, folder = compile_in_a_process(tmp_path)
    assert hits == 0
    assert misses >= 1
    assert folder.startswith(str(tmp_path))
    assert os.stat(folder).st_mode & 0o077 == 0, "who can write there can run code"
    assert compile_in_a_process(tmp_path) == (misses, 0, folder)


@pytest.mark.usefixtures("options")
def test_where_programs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    folder = keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert tmp_path / "programs" in folder.parents
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


@pytest.mark.usefixtures("options")
@pytest.mark.parametrize("cache", ["off", "file"])
def test_without_a_folder_nothing_changes(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv(VARIABLE, cache)
    assert keep_programs() is None
    assert jax.config.jax_compilation_cache_dir is None


@pytest.mark.usefixtures("options")
def test_a_folder_that_jax_was_told_stays(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "ours"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    assert keep_programs() == tmp_path / "theirs"
    assert not (tmp_path / "ours").exists()


@pytest.mark.usefixtures("options")
@pytest.mark.parametrize("way", ["writable", "owned"])
def test_a_folder_that_others_can_write_to_is_not_used(tmp_path, monkeypatch, way):
    """Who can write there can run code."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    folder = keep_programs()
    jax.config.update("jax_compilation_cache_dir", None)
    if way == "writable":
        folder.chmod(0o770)
    else:
        monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    assert keep_programs() is None
    assert jax.config.jax_compilation_cache_dir is None


def write(folder, name, content, age=0):
    path = folder / f"{name}-cache"
    path.write_bytes(content)
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_damaged_programs_go(tmp_path):
    whole = zlib.compress(os.urandom(1000))
    kept = [write(tmp_path, "whole", whole), write(tmp_path, "zstd", b"\x28\xb5\x2f\xfd ...")]
    for name, content in {"half": whole[:500], "empty": b"", "flipped": whole[:500] + b"x" + whole[501:]}.items():
        write(tmp_path, name, content)
    tidy(tmp_path, 10**6)
    assert sorted(tmp_path.glob("*-cache")) == kept
    old = write(tmp_path, "old", whole[:500], age=100)
    tidy(tmp_path, 10**6)
    assert old.exists(), "what is older than the last look is not read again"


def test_what_was_used_longest_ago_goes_first(tmp_path):
    program = zlib.compress(os.urandom(1000))
    for name, age in {"a": 30, "b": 10, "c": 50, "d": 20}.items():
        write(tmp_path, name, program, age)
    tidy(tmp_path, 2 * len(program))
    assert [path.name for path in sorted(tmp_path.glob("*-cache"))] == ["b-cache", "d-cache"]


def test_one_that_cannot_be_read_does_not_keep_the_others(tmp_path, monkeypatch):
    program = zlib.compress(os.urandom(1000))
    paths = [write(tmp_path, name, program, age) for name, age in {"a": 30, "b": 20, "c": 10}.items()]
    read = type(paths[0]).read_bytes
    monkeypatch.setattr(type(paths[0]), "read_bytes", lambda path: read(path if path != paths[0] else tmp_path))
    tidy(tmp_path, 2 * len(program))
    assert [path.name for path in sorted(tmp_path.glob("*-cache"))] == ["b-cache", "c-cache"]


def test_what_xla_found_out_about_kernels_counts(tmp_path):
    folder = tmp_path / "xla_gpu_per_fusion_autotune_cache_dir"  # as JAX calls it
    (folder / "deeper").mkdir(parents=True)
    write(tmp_path, "program", zlib.compress(os.urandom(1000)))
    for name, age in {"old": 100, "new": 0}.items():
        write(folder / "deeper", name, b"x" * 10**5, age)
    tidy(tmp_path, 150_000)
    assert [path.name for path in folder.glob("*/*")] == ["new-cache"]
    assert len(list(tmp_path.glob("*-cache"))) == 1


def test_what_cannot_be_tidied_stays(tmp_path, monkeypatch):
    path = write(tmp_path, "a", b"")
    monkeypatch.setattr(type(path), "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError()))
    tidy(tmp_path, 0)
    assert path.exists()
