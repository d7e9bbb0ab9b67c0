"""Which release some files are, told by their keys and shapes: the kind, the model's options, and the table to use."""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from dinov3seg_jax.config import (
    EarlyRefinementConfig,
    LateRefinementConfig,
    ModelConfig,
    SamConfig,
    TextConfig,
    VisionConfig,
)
from dinov3seg_jax.config_files import apply_override, from_dict
from dinov3seg_jax.convert.foreign import looks_like
from dinov3seg_jax.convert.sources import WRAPPER, Source
from dinov3seg_jax.convert.tables import anyup, cafedino, catseg, clip, dinotxt, dinov3, huggingface, linear, sam, tips
from dinov3seg_jax.convert.tables import timm as timm_layout
from dinov3seg_jax.convert.tables.rules import Row, Shape, drop, prefixed
from dinov3seg_jax.errors import UserError, one_line
from dinov3seg_jax.models.graph import build
from dinov3seg_jax.models.layers import NORM_EPSILON
from dinov3seg_jax.models.presets import CLIP_VISION, NANO, SAM, TIPS_TEXT, TIPS_VISION, VISION
from dinov3seg_jax.text.prompts import load_templates

TRAINING_HEADS = drop(rf"{WRAPPER}(?:dino_head|ibot_head|dino_loss|ibot_patch_loss)\..*")
REST_OF_CATSEG = drop(r"(?:sem_seg_head\.predictor\.clip_model|upsample[12])\..*")
HEAD_DIM = 64  # of every release but vit7b16, where the file does not say
CATSEG_GRID = 24
CLIP_NOTE = (
    "these two towers begin a model (--config.model.towers=clip, init_from); by themselves they do not segment here"
)
CAFEDINO_RECIPE = {"mode": "slide", "resize": "square", "image_size": 512, "window": 224, "stride": 112}
CAFEDINO_LICENCE = (
    "nobody states a licence for CAFe-DINO's own weights; the file also holds Meta's, under the DINOv3 License, and "
    "AnyUp's, under CC BY 4.0"
)
SAT_IMAGES = (
    "made for images normalised with mean (0.430, 0.411, 0.296) and deviation (0.213, 0.156, 0.143), not ImageNet's"
)
SAT_ADVICE = "for a linear head on them set --config.model.linear.pixels=sat493m"
SAT_NOTE = f"these are SAT-493M weights, {SAT_IMAGES}; {SAT_ADVICE}"

TIPS_CONTEXT = 64  # tokens, of every release; positions are computed
TIPS_RECIPE = {  # its zero-shot notebook's
    "patch_features": "head",
    "mode": "slide",
    "short_side": 448,
    "window": 448,
    "stride": 336,
    "templates": "tcl_9",
}

SMALL = dataclasses.replace(
    NANO, early=EarlyRefinementConfig(enabled=False), late=LateRefinementConfig(enabled=False), spe="none"
)

Shapes = Mapping[str, Shape]


@dataclasses.dataclass(frozen=True)
class Recognised:
    """What files are and how they are converted."""

    kind: str
    name: str  # a released size, or "custom"
    rows: tuple[Row, ...]
    expected: dict[str, Shape]  # our name -> shape, of every parameter they fill
    model: dict[str, Any]  # sections and options of `ModelConfig`, as far as the files decide them
    notes: tuple[str, ...]
    config: dict[str, dict[str, Any]]  # other sections of `Config`: how the release is used


class _Found(NamedTuple):
    """What the reader of one kind makes of keys and shapes."""

    name: str
    rows: tuple[Row, ...]
    model: dict[str, Any]
    parts: str  # regex for the start of our names
    notes: list[str]
    around: dict[str, Any] = {}  # noqa: RUF012 -- other options that those parts' shapes depend on
    assumed: tuple[str, ...] = ()  # options that no file says, of a size that was never released
    config: dict[str, dict[str, Any]] = {}  # noqa: RUF012 -- other sections of `Config`: how the release is used


class _Kind(NamedTuple):
    """A row of the table below."""

    what: str
    mark: str  # regex of a key that only this kind has, whatever stands before it
    read: Callable[[Shapes, Source, bool], _Found]


def recognise(source: Source, kind: str, overrides: Sequence[str] = (), *, rounded_periods: bool = False) -> Recognised:
    """Say what a source is.

    Args:
        source: opened files; no tensor of them is read.
        kind: what they should be, a key of `KINDS`.
        overrides: options that shapes do not tell, like "text.heads=20".
        rounded_periods: for Hugging Face's files, see `dinov3seg_jax.convert.tables.huggingface.rules`.

    Raises:
        UserError: they are of another kind, or of none.
    """
    shapes = {re.sub(f"^{WRAPPER}", "", key): tensor.shape for key, tensor in source.tensors.items()}
    kind_found = _kind_of(shapes)
    if kind_found in (None, "dinov3", "sam") and (foreign := looks_like(shapes)):
        raise UserError(f"'{source.files[0]}' looks like {foreign.what}; {foreign.mend}.")
    if kind_found is None:
        raise UserError(f"'{source.files[0]}' {_unknown(source, shapes)}; see docs/convert.md.")
    if kind_found != kind:
        raise UserError(
            f"'{source.files[0]}' holds {KINDS[kind_found].what}, not {KINDS[kind].what}; "
            f"run dinov3seg convert {kind_found}."
        )
    try:
        found = KINDS[kind].read(shapes, source, rounded_periods)
    except (KeyError, IndexError, ZeroDivisionError, ValueError, TypeError, StopIteration) as error:
        reason = one_line(error, 100)
        raise UserError(
            f"'{source.files[0]}' looks like {KINDS[kind].what}, but lacks what tells its size ({reason}); "
            "give the whole file of one released model."
        ) from None
    for override in overrides:
        apply_override(found.model, override)
    rotary = found.model.get("towers", "dinotxt") == "dinotxt"
    for section, options in found.model.items():
        step = 4 if section == "vision" and rotary else 1  # rotary frequencies come in fours
        dim, heads = (options.get("dim"), options.get("heads")) if isinstance(options, dict) else (None, None)
        if not isinstance(dim, int) or not isinstance(heads, int) or heads < 1:
            continue  # the config's own check says so
        if dim % (step * heads):
            raise UserError(
                f"'{source.files[0]}' is {dim} wide, which cannot be shared by {heads} heads; "
                f"set --config.{section}.heads."
            )
    expected = {name: shape for name, shape in _shapes_of(found).items() if re.match(found.parts, name)}
    notes = [
        f"no file says {option}; {_value(found.model, option)} is assumed, set --config.{option} if it is another"
        for option in found.assumed
        if not any(override.startswith(f"{option}=") for override in overrides)
    ]
    if source.left_out:
        notes.append(f"left out of the training checkpoint: {', '.join(source.left_out)}")
    notes = [*found.notes, *notes, *source.notes]
    return Recognised(kind, found.name, found.rows, expected, found.model, tuple(notes), found.config)


def _kind_of(shapes: Shapes) -> str | None:
    if "pos_embed" in shapes and shapes.get("register_tokens", ())[1:2] == (1,):  # DINOv2's are four, or none
        return "tips"
    return next((name for name, row in KINDS.items() if any(re.fullmatch(row.mark, key) for key in shapes)), None)


def _value(model: Mapping[str, Any], option: str) -> Any:
    section, name = option.split(".")
    return model[section][name]


def _unknown(source: Source, shapes: Shapes) -> str:
    """What to say of keys that no kind has, unless something stands before them."""
    for row in KINDS.values():
        for key in shapes:
            if match := re.fullmatch(rf"(.+)\.{row.mark}", key):
                return f"seems to hold {row.what} under '{match[1]}.'; if so, add --take {match[1]}"
    shown = ", ".join(sorted(source.tensors)[:3]) or "none at all"
    taken = ", ".join(row.what for row in KINDS.values())
    return f"is of no known kind (its keys are {shown}, ...); give one of {taken}"


def _shapes_of(found: _Found) -> dict[str, Shape]:
    """Parameters of a whole model with the options found, small or absent where nothing is said."""
    values: dict[str, Any] = dataclasses.asdict(SMALL)
    for section, options in itertools.chain(found.around.items(), found.model.items()):
        values[section] = values[section] | options if isinstance(options, dict) else options
    return _shapes_of_model(from_dict({"model": values}, origin="the source").model)


@functools.cache
def _shapes_of_model(config: ModelConfig) -> dict[str, Shape]:
    return {name: tuple(leaf.shape) for name, leaf in build(config)[1].items()}


def _count(shapes: Shapes, pattern: str) -> int:
    """How many blocks there are, by the numbers in keys.

    Raises:
        UserError: a number between them is missing.
    """
    numbers = {int(match[1]) for key in shapes if (match := re.match(pattern, key))}
    if missing := set(range(len(numbers))) - numbers:
        raise UserError(
            f"the source holds block {max(numbers)}, but nothing of block {min(missing)}; give all files of one model."
        )
    return len(numbers)


class _Layout(NamedTuple):
    """Keys that tell a backbone's options."""

    cls: str
    patches: str
    storage: str
    bias: str
    up: str
    gated_up: str
    gate: str
    blocks: str = r"blocks\.(\d+)\."


OFFICIAL = _Layout(
    "cls_token",
    "patch_embed.proj.weight",
    "storage_tokens",
    "blocks.0.attn.qkv.bias",
    "blocks.0.mlp.fc1.weight",
    "blocks.0.mlp.w2.weight",
    "blocks.0.mlp.w1.weight",
)
HUGGING_FACE = _Layout(
    "embeddings.cls_token",
    "embeddings.patch_embeddings.weight",
    "embeddings.register_tokens",
    "layer.0.attention.q_proj.bias",
    "layer.0.mlp.up_proj.weight",
    "layer.0.mlp.up_proj.weight",
    "layer.0.mlp.gate_proj.weight",
    r"layer\.(\d+)\.",
)
TIMM = _Layout(
    "cls_token",
    "patch_embed.proj.weight",
    "reg_token",
    "blocks.0.attn.q_bias",
    "blocks.0.mlp.fc1.weight",
    "blocks.0.mlp.fc1_x.weight",
    "blocks.0.mlp.fc1_g.weight",
)


class _Backbone(NamedTuple):
    """What keys and shapes say of a backbone."""

    name: str
    rows: tuple[Row, ...]  # with our full names
    options: dict[str, Any]
    notes: list[str]
    assumed: tuple[str, ...]


def _vision(shapes: Shapes, source: Source, rounded: bool) -> _Backbone:
    """A backbone in any layout: its size, its table, its options."""
    hugging, timm = "embeddings.cls_token" in shapes, "blocks.0.gamma_1" in shapes
    keys = HUGGING_FACE if hugging else TIMM if timm else OFFICIAL
    gated = keys.gate in shapes
    storage = shapes.get(keys.storage) or shapes.get("register_tokens") or (1, 0, 0)
    dim = shapes[keys.cls][-1]
    heads, theta = _of_config(source.config if hugging else {}, gated)
    options = {
        "dim": dim,
        "depth": _count(shapes, keys.blocks),
        "heads": 0,
        "patch_size": shapes[keys.patches][-1],
        **_ffn(dim, shapes[keys.gated_up if gated else keys.up][0], gated=gated),
        "qkv_bias": keys.bias in shapes,
        "storage_tokens": storage[1],
        "rope_base": theta,
        "untie_cls_and_patch_norms": "cls_norm.weight" in shapes,
        "head_blocks": 0,
    }
    name = _released(options)
    if timm and name == "custom" and (known := _released(options | {"qkv_bias": True})) != "custom":
        name, options["qkv_bias"] = known, True  # of biases that are all zero in the release
    if name != "custom":
        options["ffn_align"] = VISION[name].ffn_align  # another may give the same width
    if not hugging and not timm:
        (periods,) = shapes["rope_embed.periods"]
        if dim % (4 * periods):
            raise ValueError(f"{periods} rotary periods do not fit a width of {dim}")
        options["heads"] = dim // (4 * periods)
        rows = dinov3.RULES
    else:
        options["heads"] = heads or (VISION[name].heads if name != "custom" else max(dim // HEAD_DIM, 1))
        rows = (
            huggingface.rules(theta, rounded_periods=rounded)
            if hugging
            else timm_layout.rules(biased=keys.bias in shapes, rounded_periods=rounded)
        )
    assumed = ("vision.heads",) if name == "custom" and (timm or (hugging and not heads)) else ()
    notes: list[str] = []
    pictures = _pictures(source)
    told = name == "vitl16" and not hugging and not timm  # by keys
    if pictures == "sat493m" or (told and "local_cls_norm.weight" in shapes):
        name, notes = f"{name}_sat493m", [SAT_NOTE]
    elif name in ("vitl16", "vit7b16") and not told and not pictures:
        notes = [f"the files do not say that they are not SAT-493M weights; these are {SAT_IMAGES}; {SAT_ADVICE}"]
    return _Backbone(name, (*prefixed(rows, WRAPPER, "vision/backbone/"), TRAINING_HEADS), options, notes, assumed)


def _of_config(config: Mapping[str, Any], gated: bool) -> tuple[int, float]:
    """Heads, 0 for unknown, and the rotary base, of a Hugging Face config.json that says nothing unknown to us."""
    rope = config.get("rope_parameters")
    said = {
        "layer_norm_eps": config.get("layer_norm_eps", NORM_EPSILON),
        "rope_theta": config.get("rope_theta") or (rope if isinstance(rope, dict) else {}).get("rope_theta") or 100.0,
        "num_attention_heads": config.get("num_attention_heads") or 0,
    }
    for option, value in said.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"config.json says {option} {value!r}, which is no number; get it again.")
    if abs(said["layer_norm_eps"] - NORM_EPSILON) > 1e-9:
        raise UserError(f"config.json says layer_norm_eps {said['layer_norm_eps']}; only {NORM_EPSILON} is supported.")
    activation = "silu" if gated else "gelu"
    if config.get("hidden_act", activation) != activation:
        raise UserError(f"config.json says hidden_act {config['hidden_act']}; only {activation} is supported there.")
    return int(said["num_attention_heads"]), float(said["rope_theta"])


def _pictures(source: Source) -> str:
    """The set of pictures that file names, or a config.json such as timm's, say; empty: none."""
    names = " ".join([*(file.name for file in source.files), str(source.config.get("pretrained_cfg", ""))])
    return next((pictures for pictures in ("sat493m", "lvd1689m") if pictures in names), "")


def _released(options: Mapping[str, Any]) -> str:
    return next((name for name, preset in VISION.items() if _same_but_heads(preset, options)), "custom")


def _ffn(dim: int, hidden: int, *, gated: bool) -> dict[str, Any]:
    """Options that give a block this hidden width; round ones where there are any."""
    if not gated:
        return {"ffn": "mlp", "ffn_ratio": hidden / dim, "ffn_align": 8}
    for align, halves in ((align, halves) for align in (8, 64) for halves in range(1, 25)):
        if -(-int(int(dim * halves / 2) * 2 / 3) // align) * align == hidden:
            return {"ffn": "swiglu", "ffn_ratio": halves / 2, "ffn_align": align}
    return {"ffn": "swiglu", "ffn_ratio": (-(-3 * hidden // 2) + 0.5) / dim, "ffn_align": 1}


def _same_but_heads(preset: VisionConfig, options: Mapping[str, Any]) -> bool:
    decisive = ("dim", "depth", "patch_size", "ffn", "ffn_ratio", "qkv_bias", "storage_tokens")
    tied = not options["untie_cls_and_patch_norms"]
    return tied and all(getattr(preset, option) == options[option] for option in decisive)


def _dinov3(shapes: Shapes, source: Source, rounded: bool) -> _Found:
    name, rows, options, notes, assumed = _vision(shapes, source, rounded)
    return _Found(name, rows, {"vision": options}, "vision/backbone/", notes, assumed=assumed)


def _dinotxt(shapes: Shapes, source: Source, rounded: bool) -> _Found:
    """Head and text, with or without the backbone, which is a file of its own or in the same one."""
    inner = "visual_model.backbone."
    own = {key.removeprefix(inner): shape for key, shape in shapes.items() if key.startswith(inner)}
    beside = {key: shape for key, shape in shapes.items() if not key.startswith(("visual_model.", "text_model."))}
    dim = shapes["visual_model.head.ln_final.weight"][0]
    vision: dict[str, Any] = {"dim": dim, "heads": max(dim // HEAD_DIM, 1)}
    rows: tuple[Row, ...] = prefixed(dinotxt.HEAD_AND_TEXT, WRAPPER)
    name, parts = "dinov3.txt head and text", "vision/head/|text/"
    notes: list[str] = []
    assumed: tuple[str, ...] = ()
    if own or len(beside) > 1:  # besides logit_scale
        backbone, table, vision, notes, assumed = _vision(own or beside, source, rounded)
        rows += prefixed(dinov3.RULES, f"{WRAPPER}{re.escape(inner)}", "vision/backbone/") if own else table
        name, parts = f"{backbone} with dinov3.txt", "vision/|text/"
        if SAT_NOTE in notes:
            notes = [*notes, "dinov3.txt's head was trained on the LVD-1689M backbone; this one is no partner for it"]
    vision["head_blocks"] = _count(shapes, r"visual_model\.head\.blocks\.(\d+)\.")
    vocabulary, width = shapes["text_model.backbone.token_embedding.weight"]
    text = {
        "dim": width,
        "depth": _count(shapes, r"text_model\.backbone\.blocks\.(\d+)\."),
        "heads": max(width // HEAD_DIM, 1),
        "ffn_ratio": shapes["text_model.backbone.blocks.0.feed_forward.fc1.weight"][0] / width,
        "vocab_size": vocabulary,
        "context_length": shapes["text_model.backbone.positional_embedding"][0],
    }
    if width != TextConfig.dim:
        assumed = (*assumed, "text.heads")
    return _Found(name, rows, {"vision": vision, "text": text}, parts, notes, assumed=assumed)


def _sam(shapes: Shapes, source: Source, rounded: bool) -> _Found:
    shapes = {key.removeprefix("image_encoder."): shape for key, shape in shapes.items()}
    dim, depth, grid = shapes["pos_embed"][-1], _count(shapes, r"blocks\.(\d+)\."), shapes["pos_embed"][1]
    reach = [(shapes[f"blocks.{number}.attn.rel_pos_h"][0] + 1) // 2 for number in range(depth)]
    patch_size = shapes["patch_embed.proj.weight"][-1]
    options: dict[str, Any] = {
        "dim": dim,
        "depth": depth,
        "heads": dim // shapes["blocks.0.attn.rel_pos_h"][1],
        "patch_size": patch_size,
        "mlp_ratio": shapes["blocks.0.mlp.lin1.weight"][0] / dim,
        "window": next((side for side in reach if side != grid), SamConfig.window),
        "global_blocks": tuple(number for number, side in enumerate(reach) if side == grid),
        "neck_dim": shapes["neck.0.weight"][0],
        "image_size": grid * patch_size,
    }
    config = SamConfig(**options)
    name = next((known for known, preset in SAM.items() if preset == config), "custom")
    rows = prefixed(sam.rules(config), f"{WRAPPER}(?:{sam.CHECKPOINT_PREFIX})?", "sam/")
    return _Found(
        name, (*rows, *prefixed(sam.REST_OF_CHECKPOINT, WRAPPER)), {"sam": options}, "sam/", [], {"spe": "sam"}
    )


def _anyup(shapes: Shapes, source: Source, rounded: bool) -> _Found:
    dim = shapes["rope.freqs"][1]
    filters, _, kernel, _ = shapes["key_features_encoder.0.basis"]
    options = {
        "enabled": True,
        "dim": dim,
        "heads": 4,
        "window_ratio": EarlyRefinementConfig.window_ratio,
        "unification": "official",
        "kernels": tuple(shapes[f"{encoder}_encoder.0.weight"][-1] for encoder in ("image", "query", "key")),
        "unification_kernel": kernel,
        "unification_dim": _unless(dim, filters),
        "locality": 0.0,
    }
    name = "anyup" if dim == 128 else "custom"
    assumed = () if name == "anyup" else ("early.heads",)
    return _Found(name, prefixed(anyup.RULES, WRAPPER, "early/"), {"early": options}, "early/", [], assumed=assumed)


def _cafedino(shapes: Shapes, source: Source, rounded: bool) -> _Found:
    """The whole model: dinov3.txt, tuned further; AnyUp; and the head."""
    towers = _dinotxt(_without(r"(?=visual_model\.|text_model\.|logit_scale)", shapes), source, rounded)
    upsampler = _anyup(_without(cafedino.UPSAMPLER, shapes), source, rounded)
    first = "aggregator.0.spatial_agg.swin1.attn"
    cells, heads = shapes[f"{first}.relative_position_bias_table"]
    side = (math.isqrt(cells) + 1) // 2
    if (2 * side - 1) ** 2 != cells:
        raise UserError(
            f"'{source.files[0]}' has a table of {cells} relative biases, which no square window has; give a file of "
            "the released model."
        )
    dim = shapes["corr_embed.weight"][0]
    head = {"layers": _count(shapes, r"aggregator\.(\d+)\."), "dim": dim, "heads": heads, "window": (side, side)}
    model = towers.model | upsampler.model | {"cafedino": head | {"linear": False, "batch_statistics": False}}
    rows = (
        *towers.rows,
        *prefixed(anyup.RULES, WRAPPER + cafedino.UPSAMPLER, "early/"),
        *prefixed(cafedino.RULES, WRAPPER),
    )
    model["early"] |= {"image_stride": 1}
    recipe = {"inference": CAFEDINO_RECIPE | {"templates": load_templates("cafedino_10")}}
    assumed = (*towers.assumed, *upsampler.assumed)
    return _Found("cafedino", rows, model, "", [*towers.notes, CAFEDINO_LICENCE], {}, assumed, recipe)


def _catseg(shapes: Shapes, source: Source, rounded: bool) -> _Found:
    """A whole released file, or the aggregator alone."""
    clip_model = _without(catseg.CLIP_PREFIX, shapes)
    if any(re.match(r"(?:model\.)?backbone\.", key) for key in source.tensors):
        raise UserError(
            f"'{source.files[0]}' is a CAT-Seg of 2023, which has a backbone beside CLIP: another model; take "
            "model_base.pth or model_large.pth of 2024."
        )
    aggregator = _without(catseg.CHECKPOINT_PREFIX, shapes) or shapes
    mask = aggregator.get("layers.0.swin_block.block_2.attn_mask")
    padding = 256 if "layers.0.attention.padding_tokens" in aggregator else 0  # as released; the file does not say
    late_dim = aggregator["conv1.weight"][0]
    late = {
        "enabled": True,
        "layers": _count(aggregator, r"layers\.(\d+)\."),
        "dim": late_dim,
        "appearance_dim": _unless(late_dim, aggregator["guidance_projection.0.weight"][0]),
        "text_dim": _unless(late_dim, aggregator["text_guidance_projection.0.weight"][0]),
        "heads": 4,
        "window": math.isqrt(mask[-1]) if mask else 12,
        "class_attention": "linear",
        "doubled_residual": True,
        "pad_classes": padding,
        "max_classes": padding,
    }
    stages = ("decoder1", "decoder2")
    decoder = {
        "dims": tuple(aggregator[f"{stage}.conv.double_conv.0.weight"][0] for stage in stages),
        "guidance_dims": tuple(aggregator[f"decoder_guidance_projection.{number}.0.weight"][0] for number in (0, 1)),
    }
    lifted = tuple(aggregator[f"decoder_guidance_projection.{number}.0.weight"][1] for number in (0, 1))
    assumed = () if late["dim"] == LateRefinementConfig.dim else ("late.heads",)
    if {"visual.conv1.weight", "token_embedding.weight"} <= clip_model.keys():
        name, of_clip, assumed_of_clip = _clip_towers(clip_model, source)
        model = of_clip | {
            "early": {"enabled": False},
            "spe": "vision",
            "spe_dims": lifted,
            "late": late,
            "decoder": decoder | {"correlation_skip": False},
        }
        rows = prefixed(catseg.WHOLE, WRAPPER)
        recipe = {"inference": catseg_recipe(of_clip["vision"])}
        named = {"clip_vitb16": "catseg_vitb", "clip_vitl14_336": "catseg_vitl"}.get(name, "catseg")
        return _Found(named, rows, model, "", [], {}, (*assumed, *assumed_of_clip), recipe)
    # What the aggregator's inputs are as wide as: CAT-Seg's text, its image features and their lifted maps.
    around = {
        "correlation": "local",  # one channel
        "spe": "sam",
        "vision": {"dim": aggregator["text_guidance_projection.0.weight"][1] // 2},
        "sam": {"neck_dim": aggregator["guidance_projection.0.weight"][1]},
        "spe_dims": lifted,
    }
    rows = (*prefixed(catseg.RULES, f"{WRAPPER}(?:{catseg.CHECKPOINT_PREFIX})?"), REST_OF_CATSEG)
    parts = "embed_correlation/|guidance/project_|project_text/|late/|decoder/"
    return _Found("catseg", rows, {"late": late, "decoder": decoder}, parts, [], around, assumed)


def _unless(default: int, value: int) -> int:
    """A width, or 0 where it is the default."""
    return 0 if value == default else value


def catseg_recipe(vision: Mapping[str, Any]) -> dict[str, Any]:
    """CAT-Seg's published inference: five views of 384 pixels, which its larger model sees at 336."""
    side = vision["patch_size"] * CATSEG_GRID
    return {
        "fusion": "logits",
        "resize": "catseg",
        "image_size": 640,
        "window": 384,
        "stride": 256,
        "view_size": 0 if side == 384 else side,
    }


def _without(prefix: str, shapes: Shapes) -> Shapes:
    """The keys that begin so, without that beginning."""
    return {key[match.end() :]: shape for key, shape in shapes.items() if (match := re.match(prefix, key))}


def _clip(shapes: Shapes, source: Source, rounded: bool) -> _Found:
    """OpenAI's CLIP: both towers."""
    name, model, assumed = _clip_towers(shapes, source)
    return _Found(name, prefixed(clip.RULES, WRAPPER), model, "vision/|text/", [CLIP_NOTE], assumed=assumed)


def _clip_towers(shapes: Shapes, source: Source) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """The release, the model's options that CLIP's two towers decide, and which of them are assumed."""
    if any(key.startswith("visual.layer1.") for key in shapes):
        raise UserError(f"'{source.files[0]}' is a CLIP with a ResNet; give one with a vision transformer.")
    width, _, patch_size, _ = shapes["visual.conv1.weight"]
    vocabulary, text_width = shapes["token_embedding.weight"]
    vision = {
        "dim": width,
        "depth": _count(shapes, r"visual\.transformer\.resblocks\.(\d+)\."),
        "heads": max(width // HEAD_DIM, 1),
        "patch_size": patch_size,
        "grid": math.isqrt(shapes["visual.positional_embedding"][0] - 1),
        "outputs": shapes["visual.proj"][1],
        "head_blocks": 0,
        "storage_tokens": 0,
    }
    text = {
        "dim": text_width,
        "depth": _count(shapes, r"transformer\.resblocks\.(\d+)\."),
        "heads": max(text_width // HEAD_DIM, 1),
        "ffn_ratio": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0] / text_width,
        "vocab_size": vocabulary,
        "context_length": shapes["positional_embedding"][0],
    }
    name = next((name for name, known in CLIP_VISION.items() if _same(known, vision)), "custom")
    model = {"towers": "clip", "vision": vision, "text": text}
    return name, model, ("vision.heads", "text.heads") if name == "custom" else ()


def _same(preset: VisionConfig | TextConfig, options: Mapping[str, Any]) -> bool:
    return all(getattr(preset, option) == value for option, value in options.items())


def _tips(shapes: Shapes, source: Source, rounded: bool) -> _Found:
    """TIPSv2's towers, or one of them: the hub's file, PyTorch's .npz or Scenic's."""
    scenic = any("/" in key for key in shapes)
    whole = any(key.startswith(("vision_encoder.", "text_encoder.")) for key in shapes)
    rows = tips.SCENIC if scenic else tips.HUB if whole else tips.PYTORCH
    keys = {re.sub(r"^(?:vision|text)_encoder\.", "", key): shape for key, shape in shapes.items()}
    vision, text = (
        (_tips_vision_of_scenic(keys), _tips_text_of_scenic(keys)) if scenic else (_tips_vision(keys), _tips_text(keys))
    )
    if vision and text and vision["dim"] != text["dim"]:
        raise UserError(
            f"'{source.files[0]}' and what is beside it are of two sizes: the vision tower is {vision['dim']} wide and "
            f"the text tower {text['dim']}; give both towers of one model."
        )
    known = (
        name
        for name in TIPS_VISION
        if (not vision or _same(TIPS_VISION[name], vision)) and (not text or _same(TIPS_TEXT[name], text))
    )
    name = next(known, "custom")
    towers = {section: options for section, options in (("vision", vision), ("text", text)) if options}
    for options in towers.values():
        options["heads"] = TIPS_TEXT[name].heads if name != "custom" else max(options["dim"] // HEAD_DIM, 1)
    return _Found(
        name,
        rows,
        {"towers": "tips", **towers},
        "|".join(f"{section}/" for section in towers),
        [],
        {} if vision else {"vision": {"dim": text["dim"], "heads": text["heads"]}},
        () if name != "custom" else tuple(f"{section}.heads" for section in towers),
        {"zero_shot": TIPS_RECIPE},
    )


def _tips_vision(shapes: Shapes) -> dict[str, Any]:
    if "pos_embed" not in shapes:
        return {}
    dim = shapes["cls_token"][-1]
    gated = "blocks.0.mlp.w12.weight" in shapes
    up = next(name for name in ("w12", "fc1", "c_fc") if f"blocks.0.mlp.{name}.weight" in shapes)
    hidden = shapes[f"blocks.0.mlp.{up}.weight"][0] // (2 if gated else 1)
    return _tips_tower(dim, _count(shapes, r"blocks\.(\d+)\."), hidden, gated) | {
        "patch_size": shapes["patch_embed.proj.weight"][-1],
        "grid": math.isqrt(shapes["pos_embed"][1] - 1),
    }


def _tips_vision_of_scenic(shapes: Shapes) -> dict[str, Any]:
    inner = _without("encoder/", shapes)
    if "ToTokenSequence_0/posembed_input" not in inner:
        return {}
    _, grid, _, dim = inner["ToTokenSequence_0/posembed_input"]
    block = _without("transformer/encoderblock_0/", inner)
    gated = "FFNSwiGluFused_0/Dense_0/kernel" in block
    hidden = block["FFNSwiGluFused_0/Dense_0/kernel" if gated else "MlpBlock_0/Dense_0/kernel"][1]
    return _tips_tower(dim, _count(inner, r"transformer/encoderblock_(\d+)/"), hidden, gated) | {
        "patch_size": inner["ToTokenSequence_0/embedding/kernel"][0],
        "grid": grid,
    }


def _tips_tower(dim: int, depth: int, hidden: int, gated: bool) -> dict[str, Any]:
    unused = {"head_blocks": 0, "storage_tokens": 0}
    return {"dim": dim, "depth": depth, **_ffn(dim, hidden, gated=gated), **unused}


def _tips_text(shapes: Shapes) -> dict[str, Any]:
    if "token_embedding.weight" not in shapes:
        return {}
    vocabulary, dim = shapes["token_embedding.weight"]
    hidden = shapes["transformer.resblocks.0.mlp.c_fc.weight"][0]
    return _tips_text_tower(vocabulary, dim, _count(shapes, r"transformer\.resblocks\.(\d+)\."), hidden)


def _tips_text_of_scenic(shapes: Shapes) -> dict[str, Any]:
    if "token_emb/emb_var" not in shapes:
        return {}
    vocabulary, dim = shapes["token_emb/emb_var"]
    hidden = shapes["transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel"][1]
    return _tips_text_tower(vocabulary, dim, _count(shapes, r"transformer/encoderblock_(\d+)/"), hidden)


def _tips_text_tower(vocabulary: int, dim: int, depth: int, hidden: int) -> dict[str, Any]:
    return {
        "dim": dim,
        "depth": depth,
        "ffn_ratio": hidden / dim,
        "vocab_size": vocabulary,
        "context_length": TIPS_CONTEXT,
    }


def _linear(shapes: Shapes, source: Source, rounded: bool) -> _Found:
    """A linear segmentation head; which blocks it sees is not in the file."""
    classes, width = next(shape[:2] for key, shape in shapes.items() if key.endswith("conv.weight"))
    rows = prefixed(linear.RULES, rf"{WRAPPER}(?:{linear.CHECKPOINT_PREFIX})?")
    return _Found("linear head", rows, {"linear": {"classes": classes}}, "linear/", [], {"vision": {"dim": width}})


# In this order: what a CAFe-DINO file holds includes dinov3.txt and AnyUp, and what that holds includes a backbone.
KINDS = {
    "cafedino": _Kind("CAFe-DINO", r"corr_embed\.weight", _cafedino),
    "dinotxt": _Kind("dinov3.txt", r"text_model\.backbone\.token_embedding\.weight", _dinotxt),
    "catseg": _Kind("CAT-Seg", rf"(?:{catseg.CHECKPOINT_PREFIX})?text_guidance_projection\.0\.weight", _catseg),
    "clip": _Kind("OpenAI's CLIP", r"visual\.(?:conv1\.weight|layer1\.0\.conv1\.weight)", _clip),
    "tips": _Kind(
        "TIPSv2",
        r"vision_encoder\.register_tokens|(?:text_encoder\.)?token_embedding\.weight"
        r"|encoder/ToTokenSequence_0/posembed_input|token_emb/emb_var",
        _tips,
    ),
    "anyup": _Kind("AnyUp", r"key_features_encoder\.0\.basis", _anyup),
    "sam": _Kind("SAM's image encoder", rf"(?:{sam.CHECKPOINT_PREFIX})?blocks\.0\.attn\.rel_pos_h", _sam),
    "linear": _Kind("a linear head", rf"(?:{linear.CHECKPOINT_PREFIX})?batchnorm_layer\.running_mean", _linear),
    "dinov3": _Kind("a DINOv3 backbone", r"(?:embeddings\.)?cls_token", _dinov3),
}
