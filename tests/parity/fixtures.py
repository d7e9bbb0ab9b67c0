"""Where the reference fixtures lie and which test reads which: chosen by name, so that a new file needs no new test.

`DINOV3SEG_FIXTURES` names another folder, for example one with cases that were held out while the code was written.
"""

import os
from pathlib import Path

KNOWN_PREFIXES = (
    "anyup",
    "cafedino_model",
    "catseg_aggregator",
    "catseg_class_block",
    "catseg_clip",
    "catseg_decoder",
    "catseg_inference",
    "catseg_loss",
    "catseg_model",
    "catseg_sliding_window",
    "catseg_spatial_block",
    "dinotxt",
    "hf_vit",
    "label_remaps",
    "linear_seg_eval",
    "preprocess",
    "rope_tables",
    "sam_image_encoder",
    "sam_rel_pos",
    "semseg_metrics",
    "tips_text",
    "tips_tokenizer",
    "tips_vision",
    "tips_zeroshot",
    "tokenizer_cases",
    "vit",
    "zeroshot_seg",
)
HELD_OUT = "heldout_"
SHIPPED = Path(__file__).parents[1] / "fixtures"


def fixture_folder() -> Path:
    """`DINOV3SEG_FIXTURES`, or `tests/fixtures`."""
    return Path(os.environ.get("DINOV3SEG_FIXTURES") or SHIPPED)


def fixture_files() -> list[Path]:
    """Every fixture file, sorted by name."""
    return sorted(path for path in fixture_folder().glob("*") if path.suffix in (".json", ".npz"))


def topic(path: Path) -> str:
    """The stem that decides which test reads the file: a leading `heldout_` does not count."""
    return path.stem.removeprefix(HELD_OUT)


def fixtures(prefix: str) -> list[Path]:
    """The fixture files whose topic starts with `prefix`, sorted by name."""
    return [path for path in fixture_files() if topic(path).startswith(prefix)]
