"""The pages with code run from their first cell to their last, on a model of random weights."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import jupytext
import pytest
from nbclient import NotebookClient

from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.models.graph import initialize
from dinov3seg_jax.store.run import write_config
from dinov3seg_jax.training.checkpoint import Checkpoints
from tests.conftest import SHARED

ROOT = Path(__file__).parents[2]
PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md") if "\nkernelspec:" in page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """What pages find around them in a checkout after `make quickstart`, but for the training."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "examples"):
        (folder / name).symlink_to(ROOT / name)
    config = load_config("quickstart")
    run = folder / config.workdir
    write_config(run, config)
    checkpoints = Checkpoints(run, keep=1)
    checkpoints.save(1, initialize(config.model, jax.random.key(0)), (jnp.zeros(1),), {"train_seconds": 0.0})
    checkpoints.close()
    return folder


def test_pages_with_code_are_found():
    assert {"first_photograph", "own_data", "benchmark", "inside"} <= {page.stem for page in PAGES}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs(page, checkout, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ[SHARED])
    folder = checkout / page.parent.relative_to(ROOT)
    folder.mkdir(parents=True, exist_ok=True)
    notebook = jupytext.read(page)
    there = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=there).execute()
    assert any(cell.get("outputs") for cell in notebook.cells)
