"""Starts the app: what Gradio does by default and should not is set here."""

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dinov3seg_jax.app import memory
from dinov3seg_jax.app.limits import Limits
from dinov3seg_jax.app.models import Models
from dinov3seg_jax.app.results import Results
from dinov3seg_jax.errors import UserError, reason
from dinov3seg_jax.scratch import has_ended

PREFIX = "dinov3seg-app-"  # of folders; then comes the process's number
SWEEP_EVERY = 60  # seconds
UPLOADS_KEPT = 600  # seconds
THREADS = 40
ENVIRONMENT = {  # read when Gradio is imported
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_SHARE": "False",
}


@dataclass(frozen=True)
class Address:
    """Where the app is reached, and by whom."""

    host: str = "127.0.0.1"
    port: int = 7860
    auth: tuple[tuple[str, str], ...] = ()  # users with their passwords; none: nobody is asked


@contextmanager
def running(models: Models, limits: Limits, address: Address) -> Iterator[str]:
    """The app, for as long as the context lasts; its address. Everything it wrote is deleted at the end.

    Raises:
        UserError: Gradio is not installed, or the address cannot be used.
    """
    delete_left_over(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-", ignore_cleanup_errors=True) as folder:
        root = Path(folder).resolve()
        uploads = root / "uploads"
        uploads.mkdir()
        os.environ.update(ENVIRONMENT, GRADIO_TEMP_DIR=str(uploads))
        try:
            import gradio  # noqa: F401, which must not be imported earlier
        except ImportError as error:
            raise UserError(
                "the app needs gradio; install the extra 'app', as in pip install 'dinov3seg_jax[app]'."
            ) from error
        from dinov3seg_jax.app.asking import Asker
        from dinov3seg_jax.app.examples import painted_examples
        from dinov3seg_jax.app.handlers import Handlers
        from dinov3seg_jax.app.page import asset, build, theme

        results = Results(root / "results")
        handlers = Handlers(Asker(models, limits), results, uploads)
        page = build(handlers, painted_examples(models, root / "examples"))
        page.queue(max_size=limits.queue, default_concurrency_limit=2)
        try:
            _, url, _ = page.launch(
                server_name=address.host,
                server_port=address.port,
                auth=list(address.auth) or None,
                max_file_size=limits.upload,
                max_threads=THREADS,
                share=False,
                inbrowser=False,
                run_history=False,
                footer_links=["api"],
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                prevent_thread_lock=True,
                quiet=True,
                theme=theme(),
                css=asset("page.css"),
            )
        except OSError as error:
            raise UserError(
                f"{address.host}:{address.port} cannot be used ({reason(error)}); choose another --host or --port."
            ) from error
        stop = threading.Event()
        threading.Thread(target=_sweep, args=(results, uploads, stop), daemon=True).start()
        try:
            yield url
        finally:
            stop.set()
            page.close(verbose=False)


def _sweep(results: Results, uploads: Path, stop: threading.Event) -> None:
    while not stop.wait(SWEEP_EVERY):
        results.sweep()
        delete_old(uploads, UPLOADS_KEPT)
        memory.give_back()


def delete_left_over(parent: Path) -> None:
    """Delete what apps of this user left behind that were killed."""
    for path in parent.glob(f"{PREFIX}*-*"):
        process = path.name.removeprefix(PREFIX).partition("-")[0]
        if process.isdecimal() and path.stat().st_uid == os.getuid() and has_ended(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def delete_old(folder: Path, seconds: float) -> None:
    """Delete files that were not touched for so long, and folders that are empty then."""
    last = time.time() - seconds
    for parent, folders, files in os.walk(folder, topdown=False):  # which passes over a folder that is gone meanwhile
        for path in (Path(parent, name) for name in (*files, *folders)):
            try:
                if path.lstat().st_ctime > last:
                    continue
                if path.is_dir() and not path.is_symlink():
                    path.rmdir()
                else:
                    path.unlink()
            except OSError:  # gone already, or a folder that is not empty
                continue
