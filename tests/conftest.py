"""Shared by all tests."""

import os
import shutil
import tempfile
from pathlib import Path

import jax
import pytest
from absl import flags

pytest_plugins = ["tests.small_model", "tests.emulators"]

# Nearly all the time goes into compiling. JAX reads this when it first touches a device, which no import does, and
# the scripts that tests start inherit it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")

# Tests leave the caches of whoever runs them alone.
os.environ["DINOV3SEG_CACHE"] = "off"

# What one test compiled, others of this session find, in all workers, and in no process that a test starts. Whether a
# program is asked for twice can still be told: to find one counts as to compile one.
SHARED = "DINOV3SEG_TESTS_PROGRAMS"
if SHARED not in os.environ:
    os.environ[SHARED] = tempfile.mkdtemp(prefix="programs-of-tests-")
jax.config.update("jax_compilation_cache_dir", os.environ[SHARED])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# grain reads absl flags, in worker processes too, and refuses unless someone has parsed them.
flags.FLAGS.mark_as_parsed()


# The files whose slow tests take minutes come first, so that no worker begins one when the other is nearly through.
LONGEST = ("test_kills.py", "test_several_devices.py", "test_processes.py", "test_count.py", "test_samples.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the process that began all others
        shutil.rmtree(os.environ[SHARED], ignore_errors=True)


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of real pictures with masks, from DINOV3SEG_SAMPLES; the test is skipped where it is not set."""
    folder = os.environ.get("DINOV3SEG_SAMPLES", "")
    if not folder:
        pytest.skip("DINOV3SEG_SAMPLES does not name a folder of sample pictures")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"DINOV3SEG_SAMPLES names {folder}, which is not a folder")
    return path
