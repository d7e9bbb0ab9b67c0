"""Shared by all tests."""

import os
from pathlib import Path

import pytest
from absl import flags

# grain reads absl flags, in worker processes too, and refuses unless someone has parsed them.
flags.FLAGS.mark_as_parsed()


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
