"""Every option of the project, on one page.

A recipe, a file in `configs/`, returns a `ConfigDict`. `config_files.load_config` checks it against these frozen
dataclasses, so an unknown key or a wrong type is an error before any device starts. On a command line, set an option as
`--config.section.option=value`. Section numbers (§) are those of `docs/method.md`.
"""

import dataclasses
from typing import Annotated, Any, Literal

import pydantic
from ml_collections import ConfigDict
from pydantic import Field
from pydantic.dataclasses import dataclass

Positive = Annotated[int, Field(strict=True, gt=0)]
NonNegative = Annotated[int, Field(strict=True, ge=0)]
Integer = Annotated[int, Field(strict=True)]
From0 = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Above0 = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, lt=1)]
Probability = Annotated[float, Field(strict=True, ge=0, le=1)]
Flag = Annotated[bool, Field(strict=True)]
Prompts = Annotated[tuple[str, ...], Field(min_length=1)]
Names = Annotated[tuple[str, ...], pydantic.BeforeValidator(lambda value: _names(value))]  # "a,b" on a command line

Trackers = Annotated[
    tuple[Literal["tensorboard", "wandb", "mlflow"], ...], pydantic.BeforeValidator(lambda value: _names(value))
]

closed = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True, config=closed)
class VisionConfig:
    """§1: a DINOv3 ViT and dinov3.txt's vision head on top of it; or the vision tower of CLIP or TIPSv2.

    Those two have learned positions in place of rotary ones, and read only the options that say so.
    """

    dim: Positive = 1024  # width of the tokens
    depth: Positive = 24  # transformer blocks
    heads: Positive = 16  # of each block's attention; they divide `dim`
    patch_size: Positive = 16  # side of a patch in pixels
    ffn: Literal["mlp", "swiglu"] = "mlp"  # of each block: two layers, or SwiGLU's gated three
    ffn_ratio: Above0 = 4.0  # width inside the MLP, in multiples of `dim`
    ffn_align: Positive = 8  # SwiGLU's hidden width is rounded up to a multiple of this
    qkv_bias: Flag = True  # queries, keys and values have biases
    storage_tokens: NonNegative = 4  # registers: tokens that belong to no patch
    layerscale_init: From0 = 1e-5  # what LayerScale begins with in a new model
    rope_base: Above0 = 100.0  # of the rotary positions' wavelengths
    rope_normalize: Literal["separate", "max", "min"] = "separate"  # extents that positions are divided by
    untie_cls_and_patch_norms: Flag = False  # CLS and storage tokens have a last norm of their own
    head_blocks: NonNegative = 2  # 0: the backbone alone
    taps: tuple[NonNegative, ...] = ()  # two blocks whose outputs guide, from 0; (): after 1/3 and 2/3 of the depth
    grid: Positive = 32  # CLIP, TIPSv2: side of the square grid that positions were learned on
    outputs: NonNegative = 0  # CLIP: width of the space shared with text; 0: dim

    @property
    def shared_dim(self) -> int:
        """Width of the space that patches and halves of texts share."""
        return self.outputs or self.dim


@dataclass(frozen=True, config=closed)
class TextConfig:
    """§1: the text tower. dinov3.txt's output is twice as wide as its vision tower: one half for each granularity."""

    dim: Positive = 1280  # width of the tokens
    depth: Positive = 24  # transformer blocks
    heads: Positive = 20  # of each block's attention; they divide `dim`
    ffn_ratio: Above0 = 4.0  # width inside the MLP, in multiples of `dim`
    vocab_size: Positive = 49408  # tokens that the tokenizer knows
    context_length: Positive = 77  # tokens of the longest prompt


@dataclass(frozen=True, config=closed)
class SamConfig:
    """§4: SAM's image encoder as the Semantic Prior Encoder; the defaults are SAM ViT-L."""

    dim: Positive = 1024  # width of the tokens
    depth: Positive = 24  # transformer blocks
    heads: Positive = 16  # of each block's attention; they divide `dim`
    patch_size: Positive = 16  # side of a patch in pixels
    mlp_ratio: Above0 = 4.0  # width inside the MLP, in multiples of `dim`
    window: Positive = 14  # side of the attention windows, in patches
    global_blocks: tuple[Integer, ...] = (5, 11, 17, 23)  # blocks that attend to the whole picture, counted from 0
    neck_dim: Positive = 256  # channels of the output
    image_size: Positive = 1024  # what the position tables are stored for


@dataclass(frozen=True, config=closed)
class EarlyRefinementConfig:
    """§2: window cross-attention over unprojected patch features, after AnyUp."""

    enabled: Flag = True  # False: patches go to the correlation as they are
    dim: Positive = 128  # width of queries and keys
    heads: Positive = 4  # of the cross-attention
    window_ratio: Probability = 0.1  # 0: no window
    output_stride: Literal[4, 8, 16] = 16  # of the output grid, in pixels of a patch-16 model
    image_stride: Positive = 1  # the guiding image is reduced by this factor before it is encoded
    unification: Literal["per_channel", "official"] = "per_channel"  # "official": AnyUp's, depends on channel order
    kernels: tuple[Positive, Positive, Positive] = (1, 1, 1)  # sides of image, query and key encoders' first kernels
    unification_kernel: Positive = 5  # side of the kernel that unifies features, in cells
    unification_dim: NonNegative = 0  # filters of the unification; 0: dim
    locality: From0 = 4.0  # initial penalty per squared cell of distance, learned; 0: it begins with none, as AnyUp
    remat: Flag = False  # recompute each image encoder in the backward pass instead of keeping its activations

    @property
    def factor(self) -> int:
        """Cells of the output grid along the side of a patch."""
        return 16 // self.output_stride if self.enabled else 1


@dataclass(frozen=True, config=closed)
class LateRefinementConfig:
    """§4: (spatial block, class block), `layers` times. The last four options are CAT-Seg's, for parity."""

    enabled: Flag = True  # False: the embedded correlation goes to the decoder as it is
    layers: Positive = 2  # pairs of a spatial and a class block
    without: Literal["none", "spatial", "classes"] = "none"  # for ablations: blocks that pass maps on as they are
    dim: Positive = 128  # width of each class's map
    heads: Positive = 4  # of each attention; they divide `dim`
    window: Positive = 12  # side of the spatial blocks' windows, in cells
    class_attention: Literal["linear", "full"] = "linear"  # "full" is the usual softmax; it needs all classes at once
    remat: Flag = False  # recompute each block in the backward pass instead of keeping its activations
    kernel: Literal["xla", "fused"] = "xla"  # of the spatial blocks: "fused" is one TPU kernel (models/fused_swin.py)
    class_kernel: Literal["xla", "fused"] = "xla"  # of linear class blocks, the same (models/fused_classes.py)
    appearance_dim: NonNegative = 0  # width of the projected appearance that guides spatial blocks; 0: dim
    text_dim: NonNegative = 0  # width of the projected text that guides class blocks; 0: dim
    pooling: Positive = 1  # the class block works on a grid reduced by this factor
    training_pooling: NonNegative = 0  # of the same, while training; 0: as `pooling`
    doubled_residual: Flag = False  # the class block adds its input twice
    pad_classes: NonNegative = 0  # the class list is padded to this length with learned, unmasked entries
    max_classes: NonNegative = 0  # 0: every class; else the best per image, and a logit of -100 for the rest


@dataclass(frozen=True, config=closed)
class DecoderConfig:
    """§5: two upsampling stages: their widths, and the widths of the projected guidance they take in."""

    dims: tuple[Positive, Positive] = (64, 32)  # channels after each stage
    guidance_dims: tuple[Positive, Positive] = (32, 16)  # channels of the guidance that each stage takes in
    remat: Flag = False  # recompute each stage in the backward pass instead of keeping its activations
    packed: Flag = False  # 2 x 2 cells side by side in the channels: for TPUs (models/packing.py); a CPU is slower
    correlation_skip: Flag = False  # ours: add a logit read off the correlation, where nothing is pre-trained


@dataclass(frozen=True, config=closed)
class LinearConfig:
    """A linear head on the backbone alone, as in DINOv3's linear evaluation. It replaces the whole method."""

    classes: NonNegative = 0  # 0: no linear head; the whole method
    layers: tuple[NonNegative, ...] = ()  # blocks whose outputs it gets, counted from 0; (): the last one
    pixels: Literal["lvd1689m", "sat493m"] = "lvd1689m"  # the backbone's pre-training data: how pixels are normalised


@dataclass(frozen=True, config=closed)
class CafeDinoConfig:
    """CAFe-DINO's head on dinov3.txt. It replaces the whole method, and upsamples with `ModelConfig.early`."""

    layers: NonNegative = 0  # 0: another model
    dim: Positive = 64  # width of each class's map
    heads: Positive = 8  # of each attention; they divide `dim`
    window: tuple[Positive, Positive] = (7, 7)  # cells down and across that its relative biases were made for
    linear: Flag = False  # the class blocks attend between classes; False: between heads, as released
    batch_statistics: Flag = False  # batch norms by the view and the classes at hand, as its scripts have them


@dataclass(frozen=True, config=closed)
class ModelConfig:
    """The whole model; the defaults are the paper's: ViT-L/16, dinov3.txt, SAM ViT-L."""

    towers: Literal["dinotxt", "clip", "tips"] = "dinotxt"  # which two towers see and read: see models/towers.py
    tokenizer: str = ""  # file of the text tower's tokenizer, where that is no part of this program (TIPSv2)
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    sam: SamConfig = SamConfig()
    patch_features: Literal["head", "backbone"] = "head"  # after or before dinov3.txt's vision head
    early: EarlyRefinementConfig = EarlyRefinementConfig()
    correlation: Literal["local+global", "local", "global"] = "local+global"  # with which halves of texts
    spe: Literal["sam", "vision", "none"] = "sam"  # what guides: SAM's encoder, the vision tower, or nothing
    spe_dims: tuple[Positive, Positive] = (
        256,
        128,
    )  # widths of the lifted guidance maps, at twice and four times the grid
    late: LateRefinementConfig = LateRefinementConfig()
    decoder: DecoderConfig = DecoderConfig()
    linear: LinearConfig = LinearConfig()
    cafedino: CafeDinoConfig = CafeDinoConfig()
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the arithmetic; for parameters see train.frozen_dtype
    float32_residual: Literal["none", "encoders", "all"] = "none"  # residual streams kept wide under bfloat16: see §6
    attention: Literal["auto", "xla", "cudnn", "splash", "portable"] = "auto"  # the towers' kernel: docs/method.md, §6
    remat: Flag = False  # recompute the towers' blocks in the backward pass instead of keeping their activations

    @property
    def stream_dtype(self) -> str:
        """Type of the encoders' residual streams."""
        return self.dtype if self.float32_residual == "none" else "float32"

    @property
    def class_maps_dtype(self) -> str:
        """Type of late refinement's residual streams, one map for each class."""
        return "float32" if self.float32_residual == "all" else self.dtype


@dataclass(frozen=True, config=closed)
class DatasetConfig:
    """One source of images and masks. Which fields a dataset reads is in `data/datasets.py`."""

    name: str = "painted_scenes"  # or `folder`, `coco_json`, `colour_masks`, `coco_panoptic`, or a benchmark's
    split: str = "train"  # `train` or `eval`; of a folder, its subfolder's name
    root: str = ""  # folder on disk, for datasets that live there
    background: str = ""  # coco_json: the class of pixels that no annotation covers; "": they are ignored
    unlisted: Literal["refuse", "ignore"] = "refuse"  # colour_masks: what becomes of colours that the table lacks
    size: NonNegative = 0  # painted scenes: how many
    image_size: Positive = 160  # painted scenes: height and width in pixels
    view: NonNegative = 0  # painted scenes: side of the part of each scene that is painted, in pixels; 0: all of it
    seed: NonNegative = 0  # painted scenes
    clutter: Probability = 0.0  # painted scenes: from plain to crowded, camouflaged and thin; see painted_clutter.py


@dataclass(frozen=True, config=closed)
class MixedConfig(DatasetConfig):
    """A data set that is trained on beside `data.train`, with names of its own."""

    weight: Above0 = 1.0  # pictures of it that come for each one of `data.train`


@dataclass(frozen=True, config=closed)
class DataConfig:
    """§6: what is trained on and scored on."""

    train: DatasetConfig = DatasetConfig()
    eval: DatasetConfig = DatasetConfig(split="eval")
    mix: tuple[MixedConfig, ...] = ()  # data sets that are trained on too, as in [{"name": "folder", "root": "b"}]
    validation: Fraction = 0.0  # share of data.train's pictures that is not trained on and takes the place of data.eval
    validation_seed: NonNegative = 0  # which ones these are
    crop_size: Positive = 384  # side of the square that a training step sees, in pixels
    short_side: tuple[Positive, Positive] = (384, 384)  # drawn uniformly; images are resized to it before the crop
    crop_tries: Positive = 1  # crops drawn at most; one in which a class covers 75 % is drawn again
    flip: Flag = True  # mirror half of the pictures while training
    color_jitter: Flag = True  # change brightness, contrast, saturation and hue while training
    balance: Probability = 0.0  # how much more often pictures of rare classes come: 0 not, 1 most; see data/balance.py
    classes_per_image: NonNegative = 0  # 0: all; else the classes present, and others drawn evenly
    workers: NonNegative = 0  # grain worker processes; 0: threads of this process


Finetune = Literal["attention", "none", "last_blocks", "full", "lora", "backbone", "head"]


@dataclass(frozen=True, config=closed)
class TrainConfig:
    """§6: the optimisation."""

    steps: Positive = 80_000  # updates of the weights
    batch_size: Positive = 4  # pictures in a step, on all devices together
    view_size: NonNegative = 0  # side at which the model sees a crop, in pixels; 0: data.crop_size, of the labels
    accumulate: Positive = 1  # a batch runs in so many parts; their gradients are averaged
    learning_rate: Above0 = 2e-4  # AdamW's, at its highest
    warmup_steps: NonNegative = 0  # steps in which the rate rises from 0
    schedule: Literal["cosine", "one_cycle"] = "cosine"  # "one_cycle": of DINOv3's linear evaluation
    weight_decay: From0 = 1e-4  # AdamW's, of matrices
    decay_all: Flag = False  # weight decay for vectors too, not only for matrices
    decay_biases: Flag = False  # weight decay for all but the parameters of norms, as CAT-Seg
    beta2: Fraction = 0.999  # decay of AdamW's second moment
    clip_norm: Above0 = 0.01  # the largest norm of all gradients together
    finetune: Finetune = "attention"  # what trains of the two towers; "head": text tower and vision head
    finetune_blocks: NonNegative = 4  # for "last_blocks"
    lora_rank: Positive = 8  # for "lora": of the updates of attention's queries and values
    lora_lr_scale: Above0 = 1.0  # the updates' learning rate, in multiples of `learning_rate`
    encoder_lr_scale: From0 = 0.01  # the towers' learning rate, in multiples of `learning_rate`
    ema_decay: Fraction = 0.0  # 0: off; else checkpoints hold a moving average of the weights
    frozen_dtype: Literal["float32", "bfloat16"] = "float32"  # of the matrices that do not train, while training
    train_spe: Flag = False  # the SAM encoder is frozen in the paper
    spe_lr_scale: From0 = 0.01  # the SAM encoder's learning rate, in multiples of `learning_rate`
    objective: Literal["masks", "alignment", "captions", "patches"] = "masks"  # ours: the others train the towers alone
    alignment_temperature: Above0 = 0.1  # of "alignment": cosines are divided by it
    alignment_steps: NonNegative = 0  # ours: steps that come first, for random towers; 0: none
    alignment_by: Literal["masks", "captions"] = "masks"  # what is learned from in those steps
    alignment_batch: NonNegative = 0  # examples in each of them; 0: batch_size
    backbone_steps: NonNegative = 0  # before captions: steps in which the vision backbone learns from pictures alone
    ignored: Literal["left_out", "negative"] = "left_out"  # pixels without a class; "negative": of no class, as CAT-Seg
    negatives: Literal["as_drawn", "unbiased"] = "as_drawn"  # ours: "unbiased" weighs drawn classes for those not drawn
    class_weights: Literal["none", "inverse_sqrt", "inverse"] = "none"  # of each class's loss, by its pixels
    hardest_classes: NonNegative = 0  # ours: only so many of an image's class list enter the head; 0: all
    log_every: Positive = 20  # steps between two records
    trackers: Trackers = ("tensorboard",)  # where records go beside log.jsonl: see docs/train.md
    checkpoint_every: Positive = 1000  # steps between two checkpoints
    keep_checkpoints: Positive = 2  # older ones are deleted, but for the best step, where data.eval is scored
    eval_every: NonNegative = 0  # steps between two scorings of data.eval while training, and one at the end; 0: none
    eval_images: NonNegative = 0  # pictures that are scored then, spread over data.eval; 0: all
    eval_view: Literal["recipe", "whole"] = "recipe"  # as `inference` says; "whole": each picture at once, much faster
    eval_pictures: NonNegative = 4  # scored pictures that the logs show, the same each time
    eval_patience: NonNegative = 0  # scorings without a better mIoU after which the run ends; 0: it does not
    profile_steps: tuple[NonNegative, NonNegative] = (
        0,
        0,
    )  # first and number of those recorded in workdir/profile


@dataclass(frozen=True, config=closed)
class InferenceConfig:
    """§7: local-global inference."""

    mode: Literal["local_global", "whole", "slide"] = "local_global"  # "slide": a linear head, CAFe-DINO
    fusion: Literal["features", "logits"] = "features"  # "logits": after the head, as CAT-Seg
    resize: Literal["square", "short_side", "native", "tiled", "catseg"] = "square"  # see docs/inference.md
    tile_scale: Annotated[Above0, Field(le=16)] = 1.0  # of a picture's height and width, before it is cut into tiles
    image_size: Positive = 640  # side that pictures are resized to, or of a tile, in pixels
    window: Positive = 384  # side of a window in pixels
    stride: Positive = 128  # pixels from a window to the next
    view_size: NonNegative = 0  # of "catseg": side at which the model sees windows; 0: see inference/views/catseg.py
    global_size: NonNegative = 0  # side of the global view; 0: the resized image itself
    all_classes: Flag = False  # ours: every class passes the head, whatever model.late.max_classes rejects in training
    best_classes: NonNegative = 0  # only so many classes, the likeliest of each picture, pass the head; 0: all
    class_chunk: NonNegative = 0  # classes that pass the head together; 0: chosen for the device
    kept_megabytes: NonNegative = 256  # the classes' maps are kept between passes if they fit, else computed anew
    dtype: Literal["model", "float32", "bfloat16"] = "model"  # of the arithmetic; "model": as in training
    weights: Literal["float32", "bfloat16", "int8"] = "float32"  # how matrices are held; see docs/inference.md
    templates: Prompts = ("A photo of a {} in the scene",)  # {} is the name's place; several prompts are averaged


@dataclass(frozen=True, config=closed)
class ZeroShotConfig:
    """§8: two towers alone. The defaults are those of DINOv3's published notebook; see docs/zero_shot.md.

    Converted TIPSv2 weights say their own.
    """

    patch_features: Literal["backbone", "head"] = "backbone"  # "head": TIPSv2's value path too
    mode: Literal["slide", "whole"] = "slide"  # windows, or the whole picture at once
    short_side: Positive = 512  # that pictures are resized to, in pixels
    window: Positive = 384  # side of a window in pixels
    stride: Positive = 192  # pixels from a window to the next
    templates: Literal["imagenet_80", "paper", "tcl_9", "cafedino_10"] = "imagenet_80"  # set of prompts


@dataclass(frozen=True, config=closed)
class Config:
    """One run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    inference: InferenceConfig = InferenceConfig()
    zero_shot: ZeroShotConfig = ZeroShotConfig()
    workdir: Annotated[str, Field(min_length=1)] = "runs/default"  # the run's folder
    seed: NonNegative = 0  # of all that is drawn: weights, order, crops
    init_from: str = ""  # folders whose weights a new run starts from: runs or converted weights, separated by commas
    data_parallel: Integer = -1  # devices that share crops out; -1: all, but for what model_parallel takes
    model_parallel: Positive = 1  # devices that share the work on each crop: its towers' matrices, and its classes
    replicas: NonNegative = 0  # how many times all parameters are held; 0: once in each slice of a pod
    fsdp_bytes: NonNegative = 4 * 2**20  # larger parameters are cut over the devices of a replica
    fsdp_frozen: Flag = True  # also parameters that do not train; False: more memory, but no gathering in each step
    fsdp_gather_once: Flag = False  # parameters that train: gathered once a step, not at each use; more memory
    benchmarks: Names = ()  # data sets to score on, one after the other, instead of data.eval.name
    report_images: NonNegative = 8  # pictures in the evaluation report


def default_config() -> ConfigDict:
    """A `ConfigDict` of every option at its default, for a file in `configs/` to change."""
    return to_config_dict(Config())


def to_config_dict(section: Any) -> ConfigDict:
    """Turn a config dataclass into a `ConfigDict` in which every option can be overridden."""
    return ConfigDict(dataclasses.asdict(section), convert_dict=True)


def _names(value: Any) -> Any:
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value
