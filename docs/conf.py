"""How Sphinx builds this folder: `make docs`. Pages are Markdown; those with code cells are run."""

import hashlib
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from sphinx.application import Sphinx  # noqa: E402

import dinov3seg_jax  # noqa: E402
from docs.site import commands, options  # noqa: E402

project = "dinov3seg_jax"
release = dinov3seg_jax.__version__
copyright = "the authors of dinov3seg_jax"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["site"]
html_theme = "furo"
html_title = project
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/icon.svg"
highlight_language = "none"  # of blocks that name no language: they are commands and listings

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

# Docstrings are Google's, with code in single backticks. Types of arrays are written as in the source.
default_role = "code"
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
dinov3seg_jax.Segmenter.__name__ = "Segmenter"  # as the public name has it

nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_output_stderr = "remove"  # progress bars

# What a page's cells print depends on the package and the model too. A change of either runs all of them again.
_package = sorted((HERE.parent / "dinov3seg_jax").rglob("*.py"))
_model = sorted((HERE.parent / "runs/quickstart/checkpoints").glob("*/checksums.json"))
_digest = hashlib.sha256(b"".join(file.read_bytes() for file in (*_package, *_model))).hexdigest()
nb_execution_cache_path = str(HERE.parent / "build/docs/pages" / _digest[:16])

PACKAGE = Path(dinov3seg_jax.__file__).parent
GENERATED = {
    "reference/config": ("<!-- options -->", options.page, PACKAGE / "config.py"),
    "reference/commands": ("<!-- commands -->", commands.page, PACKAGE / "cli/main.py"),
}
BESIDE = {"index": "README.md", "changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md"}  # this folder


def put_in(app: Sphinx, page: str, source: list[str]) -> None:
    """Fill in what a page takes from elsewhere, and lead links to files beside this folder to their pages in it."""
    text = source[0]
    if page in GENERATED:
        place, made, origin = GENERATED[page]
        app.env.note_dependency(origin, docname=page)
        text = text.replace(place, made())
    if page in BESIDE:
        origin = HERE.parent / BESIDE[page]
        app.env.note_dependency(origin, docname=page)
        beside = origin.read_text(encoding="utf-8").replace("](docs/", "](")
        text = text.replace(f"<!-- {origin.name} -->", beside)
    for name, file in BESIDE.items():
        text = re.sub(rf"\]\((\.\./)?{file}", f"]({name}.md", text)
    source[0] = text


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", put_in)
