"""Every option of the project, on one page.

A file in `configs/` returns a `ConfigDict`; `load_config` checks it against these frozen dataclasses, so that an
unknown key or a wrong type is an error before any device starts. Section numbers (§) are those of `docs/method.md`.
"""

import ast
import dataclasses
import difflib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from ml_collections import ConfigDict
from pydantic import Field
from pydantic.dataclasses import dataclass

from dinov3seg_jax.errors import UserError

Positive = Annotated[int, Field(strict=True, gt=0)]
NonNegative = Annotated[int, Field(strict=True, ge=0)]
Integer = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]
Above0 = Annotated[float, Field(strict=True, gt=0)]
Probability = Annotated[float, Field(strict=True, ge=0, le=1)]
Flag = Annotated[bool, Field(strict=True)]
Names = Annotated[tuple[str, ...], pydantic.BeforeValidator(lambda value: _names(value))]  # "a,b" on a command line

closed = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True, config=closed)
class VisionConfig:
    """§1: a DINOv3 ViT and dinov3.txt's vision head on top of it."""

    dim: Positive = 1024
    depth: Positive = 24
    heads: Positive = 16
    patch_size: Positive = 16
    ffn: Literal["mlp", "swiglu"] = "mlp"
    ffn_ratio: Number = 4.0
    ffn_align: Positive = 8  # SwiGLU's hidden width is rounded up to a multiple of this
    qkv_bias: Flag = True
    storage_tokens: NonNegative = 4
    layerscale_init: Number = 1e-5
    rope_base: Number = 100.0
    rope_normalize: Literal["separate", "max", "min"] = "separate"
    untie_cls_and_patch_norms: Flag = False
    head_blocks: NonNegative = 2  # 0: the backbone alone


@dataclass(frozen=True, config=closed)
class TextConfig:
    """§1: dinov3.txt's text tower. Its output is twice as wide as the vision tower: one half for each granularity."""

    dim: Positive = 1280
    depth: Positive = 24
    heads: Positive = 20
    ffn_ratio: Number = 4.0
    vocab_size: Positive = 49408
    context_length: Positive = 77


@dataclass(frozen=True, config=closed)
class SamConfig:
    """§4: SAM's image encoder as the Semantic Prior Encoder; the defaults are SAM ViT-L."""

    dim: Positive = 1024
    depth: Positive = 24
    heads: Positive = 16
    patch_size: Positive = 16
    mlp_ratio: Number = 4.0
    window: Positive = 14
    global_blocks: tuple[Integer, ...] = (5, 11, 17, 23)
    neck_dim: Positive = 256
    image_size: Positive = 1024  # what the position tables are stored for


@dataclass(frozen=True, config=closed)
class EarlyRefinementConfig:
    """§2: window cross-attention over unprojected patch features, after AnyUp."""

    enabled: Flag = True
    dim: Positive = 128
    heads: Positive = 4
    window_ratio: Probability = 0.1  # 0: no window
    output_stride: Literal[4, 8, 16] = 16  # of the output grid, in pixels of a patch-16 model
    image_stride: Positive = 1  # the guiding image is reduced by this factor before it is encoded
    unification: Literal["per_channel", "official"] = "per_channel"  # "official": AnyUp's channel-order dependence
    locality: Number = 4.0  # initial penalty per squared cell of distance, learned; 0: none, as in AnyUp

    @property
    def factor(self) -> int:
        """Cells of the output grid along the side of a patch."""
        return 16 // self.output_stride if self.enabled else 1


@dataclass(frozen=True, config=closed)
class LateRefinementConfig:
    """§4: (spatial block, class block), `layers` times. The last four options are CAT-Seg's, for parity."""

    enabled: Flag = True
    layers: Positive = 2
    dim: Positive = 128
    heads: Positive = 4
    window: Positive = 12
    class_attention: Literal["linear", "full"] = "linear"
    remat: Flag = False  # recompute each block in the backward pass instead of keeping its activations
    kernel: Literal["xla", "fused"] = "xla"  # of the spatial blocks: "fused" is one TPU kernel (models/fused_swin.py)
    pooling: Positive = 1  # the class block works on a grid reduced by this factor
    doubled_residual: Flag = False
    pad_classes: NonNegative = 0  # the class list is padded to this length with learned, unmasked entries
    max_classes: NonNegative = 0  # 0: every class; else the best per image, and a logit of -100 for the rest


@dataclass(frozen=True, config=closed)
class DecoderConfig:
    """§5: two upsampling stages: their widths, and the widths of the projected guidance they take in."""

    dims: tuple[Positive, Positive] = (64, 32)
    guidance_dims: tuple[Positive, Positive] = (32, 16)
    remat: Flag = False  # recompute each stage in the backward pass instead of keeping its activations
    correlation_skip: Flag = False  # ours: add a logit read off the correlation, where nothing is pre-trained


@dataclass(frozen=True, config=closed)
class LinearConfig:
    """A linear head on the backbone alone, as DINOv3's repository evaluates its features, in place of all the rest."""

    classes: NonNegative = 0  # 0: no such head, but the whole method
    layers: tuple[NonNegative, ...] = ()  # blocks whose outputs it sees, from 0; (): the last one
    pixels: Literal["lvd1689m", "sat493m"] = "lvd1689m"  # the backbone's pre-training, by which pixels are normalised


@dataclass(frozen=True, config=closed)
class ModelConfig:
    """The whole model; the defaults are the paper's: ViT-L/16, dinov3.txt, SAM ViT-L."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    sam: SamConfig = SamConfig()
    patch_features: Literal["head", "backbone"] = "head"
    early: EarlyRefinementConfig = EarlyRefinementConfig()
    correlation: Literal["local+global", "local", "global"] = "local+global"
    spe: Literal["sam", "vision", "none"] = "sam"
    spe_dims: tuple[Positive, Positive] = (
        256,
        128,
    )  # widths of the lifted guidance maps, at twice and four times the grid
    late: LateRefinementConfig = LateRefinementConfig()
    decoder: DecoderConfig = DecoderConfig()
    linear: LinearConfig = LinearConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the arithmetic; for parameters see train.frozen_dtype
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"  # the towers' kernel: see models/layers.py, `attend`
    remat: Flag = False  # recompute the towers' blocks in the backward pass instead of keeping their activations


@dataclass(frozen=True, config=closed)
class DatasetConfig:
    """One source of images and masks. Which fields a dataset reads is in `data/datasets.py`."""

    name: str = "painted_scenes"
    split: str = "train"
    root: str = ""  # folder on disk, for datasets that live there
    size: NonNegative = 0  # painted scenes: how many
    image_size: Positive = 160  # painted scenes: height and width in pixels
    view: NonNegative = 0  # painted scenes: side of the part of each that is painted, in pixels; 0: the whole
    seed: NonNegative = 0  # painted scenes


@dataclass(frozen=True, config=closed)
class DataConfig:
    """§6: what is trained on and scored on."""

    train: DatasetConfig = DatasetConfig()
    eval: DatasetConfig = DatasetConfig(split="eval")
    crop_size: Positive = 384
    short_side: tuple[Positive, Positive] = (384, 384)  # drawn uniformly; images are resized to it before the crop
    crop_tries: Positive = 1  # crops in which one class covers 75 % are drawn anew, until so many were drawn
    flip: Flag = True
    color_jitter: Flag = True
    classes_per_image: NonNegative = 0  # 0: all; else those present and a random draw of others
    workers: NonNegative = 0  # grain worker processes; 0: threads of this process


@dataclass(frozen=True, config=closed)
class TrainConfig:
    """§6: the optimisation."""

    steps: Positive = 80_000
    batch_size: Positive = 4
    accumulate: Positive = 1  # a batch passes in so many parts, whose gradients are averaged before the step
    learning_rate: Number = 2e-4
    warmup_steps: NonNegative = 0
    schedule: Literal["cosine", "one_cycle"] = "cosine"  # "one_cycle": DINOv3's, of its linear evaluation
    weight_decay: Number = 1e-4
    decay_all: Flag = False  # the decay acts on vectors too, not only on matrices
    beta2: Probability = 0.999  # decay of AdamW's second moment
    clip_norm: Number = 0.01
    finetune: Literal["attention", "none", "last_blocks", "full"] = "attention"  # what trains of the two towers
    finetune_blocks: NonNegative = 4  # for "last_blocks"
    encoder_lr_scale: Number = 0.01
    ema_decay: Probability = 0.0  # 0: off; else the weights' moving average, which checkpoints then hold for all users
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"  # of the matrices that do not train, while training
    train_spe: Flag = False  # the SAM encoder is frozen in the paper
    objective: Literal["masks", "alignment"] = "masks"  # "alignment", ours: a contrastive loss for the towers alone
    alignment_temperature: Number = 0.1  # of that loss: cosines are divided by it
    alignment_steps: NonNegative = 0  # ours: a run from nothing first trains its towers on that loss for so long
    hardest_classes: NonNegative = 0  # ours: only so many of an image's class list enter the head; 0: all
    log_every: Positive = 20
    checkpoint_every: Positive = 1000
    keep_checkpoints: Positive = 2
    profile_steps: tuple[NonNegative, NonNegative] = (
        0,
        0,
    )  # first and number of those recorded in workdir/profile


@dataclass(frozen=True, config=closed)
class InferenceConfig:
    """§7: local-global inference."""

    mode: Literal["local_global", "whole", "slide"] = "local_global"  # "slide": of a linear head only
    fusion: Literal["features", "logits"] = "features"
    resize: Literal["square", "short_side", "native", "tiled"] = "square"  # "tiled": cut into squares of image_size
    tile_scale: Annotated[Above0, Field(le=16)] = 1.0  # of a picture's height and width, before it is cut into tiles
    image_size: Positive = 640
    window: Positive = 384
    stride: Positive = 128
    global_size: NonNegative = 0  # side of the global view; 0: the resized image itself
    best_classes: NonNegative = 0  # only so many of a list, the likeliest of each picture, pass the head; 0: all
    class_chunk: NonNegative = 0  # classes that pass the head together; 0: as many as suit the device
    kept_megabytes: NonNegative = 256  # all classes' maps are kept between the blocks if they fit, else computed anew
    dtype: Literal["model", "float32", "bfloat16"] = "model"  # of the arithmetic; "model": what it was trained with
    weights: Literal["float32", "bfloat16", "int8"] = "float32"  # how matrices are held; see docs/inference.md
    templates: Annotated[tuple[str, ...], Field(min_length=1)] = ("A photo of a {} in the scene",)


@dataclass(frozen=True, config=closed)
class ZeroShotConfig:
    """§8: dinov3.txt alone. The defaults are those of DINOv3's published notebook; see docs/zero_shot.md."""

    patch_features: Literal["backbone", "head"] = "backbone"
    mode: Literal["slide", "whole"] = "slide"
    short_side: Positive = 512
    window: Positive = 384
    stride: Positive = 192
    templates: Literal["imagenet_80", "paper"] = "imagenet_80"


@dataclass(frozen=True, config=closed)
class Config:
    """One run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    inference: InferenceConfig = InferenceConfig()
    zero_shot: ZeroShotConfig = ZeroShotConfig()
    workdir: str = "runs/default"
    seed: NonNegative = 0
    init_from: str = ""  # folders whose weights a new run starts from: runs or converted parts, separated by commas
    data_parallel: Integer = -1  # devices along the data axis; -1: all
    model_parallel: Positive = 1
    fsdp_bytes: NonNegative = 4 * 2**20  # larger parameters are spread over the data axis too
    fsdp_frozen: Flag = True  # also those that do not train; False takes more memory, and nothing is gathered each step
    benchmarks: Names = ()  # data sets to score on one after the other, in place of data.eval.name
    report_images: NonNegative = 8  # pictures in the evaluation report


def default_config() -> ConfigDict:
    """A `ConfigDict` of every option at its default, for a file in `configs/` to change."""
    return to_config_dict(Config())


def to_config_dict(section: Any) -> ConfigDict:
    """Turn a config dataclass into a `ConfigDict` in which every option can be overridden."""
    return ConfigDict(dataclasses.asdict(section), convert_dict=True)


def from_dict(values: dict[str, Any], origin: str = "config") -> Config:
    """Check plain nested values against `Config`.

    Raises:
        UserError: an unknown key, a wrong type or a value out of range; it names the key.
    """
    try:
        return pydantic.TypeAdapter(Config).validate_python(_tuples(values))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "unexpected_keyword_argument":
            raise UserError(f"{origin}: unknown option '{key}'{_suggestion(first['loc'])}.") from None
        raise UserError(f"{origin}: '{key}' is {first['input']!r}, but {_lower(first['msg'])}.") from None


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate `--config.section.option=value` (or two words) on a command line from the rest.

    Returns:
        Overrides of the form "section.option=value", and the other arguments.
    """
    overrides, rest, words = [], [], iter(arguments)
    for word in words:
        if not word.startswith("--config."):
            rest.append(word)
            continue
        override = word.removeprefix("--config.")
        overrides.append(override if "=" in override else f"{override}={next(words, '')}")
    return overrides, rest


def load_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """Read `get_config()` of a Python file and apply overrides like `train.steps=100`.

    Args:
        path: of the file; with `FILE:WORD` it is `get_config(WORD)`, where a file holds several configs.
        overrides: "section.option=value".

    Raises:
        UserError: the file does not exist or does not define a usable config; an override does not fit.
    """
    name, *word = path.split(":", 1)
    file = Path(name)
    if not file.is_file():
        known = ", ".join(sorted(str(other) for other in Path("configs").glob("*.py")))
        raise UserError(f"config '{name}' does not exist; " + (f"there are {known}." if known else "check the path."))
    spec = importlib.util.spec_from_file_location("run_config", file)
    if spec is None or spec.loader is None:
        raise UserError(f"config '{path}' is not a Python file; name one that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        values = module.get_config(*word).to_dict()
    except UserError:
        raise
    except Exception as error:  # whatever a user's own Python file raises
        reason = " ".join(str(error).split())
        raise UserError(f"config '{path}' cannot be read: {type(error).__name__}: {reason}.") from error
    for override in overrides:
        apply_override(values, override)
    return from_dict(values, origin=path)


def override_inference(config: Config, overrides: Sequence[str], section: str = "inference") -> Config:
    """Change how a model is used: everything else in its config belongs to its parameters.

    Raises:
        UserError: an override is not of the form section.option=value, or its option or value does not fit.
    """
    values = to_config_dict(config).to_dict()
    for text in overrides:
        if not text.startswith(f"{section}."):
            raise UserError(f"'{text}' cannot be changed for a trained model; only {section}.option=value can")
        apply_override(values, text)
    return from_dict(values, origin="the command line")


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one option, given as "section.option=value", in plain nested values.

    Raises:
        UserError: it is not of that form, or there is no such option.
    """
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"override '{override}' is not of the form section.option=value.")
    *sections, option = key.split(".")
    for section in sections:
        values = values.get(section, {})
        if not isinstance(values, dict):
            raise UserError(f"override '{override}': '{section}' is not a section.")
    if option not in values:
        close = difflib.get_close_matches(option, values, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise UserError(f"override '{override}': there is no option '{key}'{hint}.")
    try:
        values[option] = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        values[option] = text


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _names(value: Any) -> Any:
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


def _suggestion(location: tuple[int | str, ...]) -> str:
    section: Any = Config
    for part in location[:-1]:
        section = {field.name: field.type for field in dataclasses.fields(section)}[str(part)]
    close = difflib.get_close_matches(str(location[-1]), [field.name for field in dataclasses.fields(section)], n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
