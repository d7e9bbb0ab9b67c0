"""An app that runs, with a model that answers at once."""

import numpy as np
import pytest
from PIL import Image

from dinov3seg_jax.config import Config
from dinov3seg_jax.store.run import write_config
from tests.tiny import MODEL

NAMES = "red ball, grass, water"


@pytest.fixture(scope="session")
def app(model, tmp_path_factory):
    """Its address, its models, and the folder that all its files lie in."""
    pytest.importorskip("gradio", reason="the extra 'app' is not installed")
    from dinov3seg_jax.app import server
    from dinov3seg_jax.app.limits import Limits
    from dinov3seg_jax.app.models import Models

    folder = tmp_path_factory.mktemp("app")
    write_config(folder / "tiny", Config(model=MODEL))
    models = Models({"tiny": folder / "tiny"})
    models._loaded["tiny"] = model
    limits = Limits(upload=3_000_000, pixels=1_000_000, names=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(folder))
        with server.running(models, limits, server.Address(port=free_port())) as url:
            yield App(url, models, folder)


class App:
    """What tests know of it."""

    def __init__(self, url, models, folder):
        self.url, self.models, self.folder = url, models, folder

    def files(self):
        """All files of the app, as paths in its folder."""
        return {path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file()}


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    """A file, 60 pixels wide and 40 high."""
    path = tmp_path_factory.mktemp("picture") / "scene.png"
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path
