"""Every released layout is told by its keys and shapes, and all its tensors find a place; no file is needed."""

import dataclasses
from pathlib import Path

import pytest

from dinov3seg_jax.config import EarlyRefinementConfig, SamConfig, TextConfig, VisionConfig
from dinov3seg_jax.convert.recognise import recognise
from dinov3seg_jax.convert.run import prepare
from dinov3seg_jax.convert.sources import Source, Tensor
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.presets import ANYUP, SAM, VISION
from tests.convert.files import LAYOUTS, official

BACKBONES = [name for name in LAYOUTS if name.removeprefix("hf_") in VISION]


def described(shapes, name="weights.safetensors", config=None, left_out=()):
    def read():
        raise AssertionError("recognising reads no tensor")

    tensors = {key: Tensor(tuple(shape), read) for key, shape in shapes.items()}
    return Source((Path(name),), tensors, config or {}, tuple(left_out))


def prefixed(prefix, shapes):
    return {prefix + key: shape for key, shape in shapes.items()}


def sentence(shapes, kind, **options):
    with pytest.raises(UserError) as caught:
        prepare(described(shapes, **options), kind)
    return str(caught.value)


@pytest.mark.parametrize("layout", BACKBONES)
def test_backbones(layout):
    recognised, plan = prepare(described(LAYOUTS[layout]), "dinov3")
    preset = VISION[layout.removeprefix("hf_")]
    assert recognised.name == layout.removeprefix("hf_")
    assert VisionConfig(**recognised.model["vision"]) == dataclasses.replace(preset, head_blocks=0)
    places = [place for reading in plan.readings for place in reading.places]
    assert len(places) == len(set(places))
    assert {name for name, _ in places} | plan.fills.keys() == plan.shapes.keys()


def test_the_sat_backbone_is_told_by_its_third_norm_and_says_how_to_normalise():
    recognised, plan = prepare(described(LAYOUTS["vitl16_sat493m"]), "dinov3")
    assert recognised.name == "vitl16_sat493m"
    assert "(0.430, 0.411, 0.296)" in recognised.notes[0]
    assert plan.dropped == ("local_cls_norm.weight", "local_cls_norm.bias")


@pytest.mark.parametrize("variant", ["lvd1689m", "sat493m"])
def test_the_largest_backbone_is_told_apart_by_its_name(variant):
    name = f"dinov3_vit7b16_pretrain_{variant}-a955f4ea.pth"
    recognised, _ = prepare(described(LAYOUTS["vit7b16"], name), "dinov3")
    assert (recognised.name == "vit7b16_sat493m") == bool(recognised.notes) == (variant == "sat493m")


@pytest.mark.parametrize("prefix", ["teacher.backbone.", "module.", "model.module.backbone.", "state_dict."])
def test_a_wrapped_training_checkpoint(prefix):
    heads = {"dino_head.mlp.0.weight": [8, 8], "module.ibot_head.last_layer.weight": [8, 8], "dino_loss.center": [1, 8]}
    recognised, plan = prepare(
        described(prefixed(prefix, LAYOUTS["vits16"]) | heads, left_out=["optimizer", "iteration"]), "dinov3"
    )
    assert recognised.name == "vits16"
    assert set(plan.dropped) == set(heads)
    assert recognised.notes == ("left out of the training checkpoint: optimizer, iteration",)


def test_register_tokens_are_storage_tokens():
    shapes = {key.replace("storage", "register"): shape for key, shape in LAYOUTS["vits16"].items()}
    assert prepare(described(shapes), "dinov3")[0].model["vision"]["storage_tokens"] == 4


def test_keys_of_hugging_face_in_memory():
    shapes = {f"model.{key}" if key.startswith("layer.") else key: shape for key, shape in LAYOUTS["hf_vits16"].items()}
    assert prepare(described(shapes), "dinov3")[0].name == "vits16"


def test_a_config_beside_hugging_faces_files_counts():
    config = {"rope_parameters": {"rope_theta": 50.0}, "num_attention_heads": 12, "layer_norm_eps": 1e-5}
    vision = prepare(described(LAYOUTS["hf_vits16"], config=config), "dinov3")[0].model["vision"]
    assert (vision["rope_base"], vision["heads"]) == (50.0, 12)
    assert "layer_norm_eps" in sentence(LAYOUTS["hf_vits16"], "dinov3", config={"layer_norm_eps": 1e-6})


@pytest.mark.parametrize(
    ("layouts", "name", "parts"),
    [
        (["dinotxt_vitl16_tet1280d20h24l"], "vitl16 with dinov3.txt", {"vision/backbone", "vision/head", "text"}),
        (
            ["dinotxt_head_and_text_only", "vitl16"],
            "vitl16 with dinov3.txt",
            {"vision/backbone", "vision/head", "text"},
        ),
        (
            ["dinotxt_head_and_text_only", "hf_vitl16"],
            "vitl16 with dinov3.txt",
            {"vision/backbone", "vision/head", "text"},
        ),
        (["dinotxt_head_and_text_only"], "dinov3.txt head and text", {"vision/head", "text"}),
    ],
    ids=["whole", "two files", "with Hugging Face's backbone", "no backbone"],
)
def test_dinotxt_in_one_file_or_two(layouts, name, parts):
    shapes = {key: shape for layout in layouts for key, shape in LAYOUTS[layout].items()}
    recognised, plan = prepare(described(shapes), "dinotxt")
    assert recognised.name == name
    assert {"/".join(key.split("/")[: 1 if key.startswith("text") else 2]) for key in plan.shapes} == parts
    assert TextConfig(**recognised.model["text"]) == TextConfig()
    assert VisionConfig(**recognised.model["vision"]) == VisionConfig()


def test_dinotxt_on_the_other_backbone_is_warned_of():
    shapes = LAYOUTS["dinotxt_head_and_text_only"] | LAYOUTS["vitl16_sat493m"]
    assert "no partner" in prepare(described(shapes), "dinotxt")[0].notes[-1]


@pytest.mark.parametrize("prefix", ["", "image_encoder.", "model.image_encoder."])
def test_sam_whole_or_its_encoder_alone(prefix):
    rest = (
        {"prompt_encoder.no_mask_embed.weight": [1, 256], "mask_decoder.iou_token.weight": [1, 256]} if prefix else {}
    )
    recognised, plan = prepare(described(prefixed(prefix, LAYOUTS["sam_vit_l_image_encoder"]) | rest), "sam")
    assert recognised.name == "sam_vit_l"
    assert SamConfig(**recognised.model["sam"]) == SAM["sam_vit_l"]
    assert plan.dropped == tuple(rest)


def test_anyup():
    recognised, _ = prepare(described(LAYOUTS["anyup"]), "anyup")
    assert EarlyRefinementConfig(**recognised.model["early"]) == ANYUP


def test_an_anyup_of_another_size():
    sizes = {
        "image_encoder.0.weight": [128, 3, 3, 3],
        "query_encoder.0.weight": [128, 128, 5, 5],
        "key_features_encoder.0.basis": [64, 1, 7, 7],
        "key_features_encoder.1.shortcut.weight": [128, 64, 1, 1],
        "key_features_encoder.1.block.0.weight": [64],
        "key_features_encoder.1.block.0.bias": [64],
        "key_features_encoder.1.block.2.weight": [128, 64, 1, 1],
    }
    recognised, plan = prepare(described(LAYOUTS["anyup"] | sizes), "anyup")
    assert EarlyRefinementConfig(**recognised.model["early"]) == EarlyRefinementConfig(
        unification="official", locality=0.0, kernels=(3, 5, 1), unification_kernel=7, unification_dim=64
    )
    assert plan.shapes["early/unify/basis"] == (7, 7, 1, 64)


@pytest.mark.parametrize(
    "layout", ["catseg_aggregator_vitl", pytest.param("catseg_aggregator_vitb", marks=pytest.mark.slow)]
)
def test_catseg_with_the_rest_of_its_file(layout):
    rest = {"sem_seg_head.predictor.clip_model.logit_scale": [], "upsample1.weight": [8, 8, 2, 2]}
    shapes = prefixed("sem_seg_head.predictor.transformer.", LAYOUTS[layout]) | rest
    recognised, plan = prepare(described(shapes), "catseg")
    late = recognised.model["late"]
    assert (late["layers"], late["dim"], late["window"], late["pad_classes"]) == (2, 128, 12, 256)
    assert set(rest) < set(plan.dropped)


def test_a_linear_head():
    norm = {f"batchnorm_layer.{name}": [384] for name in ("weight", "bias", "running_mean", "running_var")}
    shapes = norm | {"batchnorm_layer.num_batches_tracked": [], "conv.weight": [150, 384, 1, 1], "conv.bias": [150]}
    recognised, plan = prepare(described(prefixed("segmentation_model.1.", shapes)), "linear")
    assert recognised.model == {"linear": {"classes": 150}}
    assert all(name.startswith("linear/") for name in plan.shapes)


@pytest.mark.parametrize(
    ("layout", "kind", "message"),
    [
        ("vits16", "sam", "holds a DINOv3 backbone, not SAM's image encoder; run dinov3seg convert dinov3"),
        ("vitl16", "dinotxt", "holds a DINOv3 backbone, not dinov3.txt"),
        ("dinotxt_vitl16_tet1280d20h24l", "dinov3", "holds dinov3.txt, not a DINOv3 backbone"),
        ("anyup", "sam", "holds AnyUp"),
        ("sam_vit_l_image_encoder", "anyup", "holds SAM's image encoder"),
    ],
)
def test_another_kind_is_named(layout, kind, message):
    assert message in sentence(LAYOUTS[layout], kind)


def test_an_unknown_model_is_refused():
    assert "is of no known kind (its keys are fc.bias" in sentence({"fc.weight": [2, 2], "fc.bias": [2]}, "dinov3")


def test_options_that_no_shape_tells():
    recognised, _ = prepare(described(LAYOUTS["dinotxt_head_and_text_only"]), "dinotxt", ["text.heads=10"])
    assert recognised.model["text"]["heads"] == 10
    with pytest.raises(UserError, match=r"there is no option 'text.head' \(did you mean 'heads'\?\)"):
        prepare(described(LAYOUTS["dinotxt_head_and_text_only"]), "dinotxt", ["text.head=10"])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("cls_token", "is of no known kind"),
        ("blocks.0.mlp.fc1.weight", "lacks what tells its size ('blocks.0.mlp.fc1.weight')"),
        ("rope_embed.periods", "lacks what tells its size ('rope_embed.periods')"),
        ("blocks.11.norm1.bias", "without a tensor: vision/backbone/blocks/norm1/bias of block 11"),
    ],
)
def test_a_missing_key(key, message):
    shapes = {name: shape for name, shape in LAYOUTS["vits16"].items() if name != key}
    assert message in sentence(shapes, "dinov3")


def test_misfits_name_both_sides():
    shapes = {key.replace("blocks.7.norm1.bias", "blocks.7.norm0.bias"): s for key, s in LAYOUTS["vits16"].items()}
    message = sentence(shapes, "dinov3")
    assert "tensors that nothing reads: blocks.7.norm0.bias" in message
    assert "parameters without a tensor: vision/backbone/blocks/norm1/bias of block 7" in message


@pytest.mark.parametrize("number", [13, 10**10])
def test_a_gap_in_the_blocks_is_named_at_once(number):
    shapes = {key.replace("blocks.11.", f"blocks.{number}."): shape for key, shape in LAYOUTS["vits16"].items()}
    assert f"holds block {number}, but nothing of block 11" in sentence(shapes, "dinov3")


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(UserError, match=r"is 384 wide, which cannot be shared by 5 heads; set --config\.vision\.heads"):
        prepare(described(LAYOUTS["hf_vits16"]), "dinov3", ["vision.heads=5"])
    for option in ("vision.heads=0", "vision.heads=two", "vision.dim=wide"):
        with pytest.raises(UserError, match="but input should be"):
            prepare(described(LAYOUTS["hf_vits16"]), "dinov3", [option])
    message = sentence(LAYOUTS["vits16"] | {"rope_embed.periods": [5]}, "dinov3")
    assert "5 rotary periods do not fit a width of 384" in message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_attention_heads": "six"}, "num_attention_heads 'six', which is no number"),
        ({"rope_theta": [100]}, "rope_theta [100], which is no number"),
        ({"layer_norm_eps": None}, "layer_norm_eps None, which is no number"),
        ({"hidden_act": "gelu_new"}, "hidden_act gelu_new; only gelu is supported"),
    ],
)
def test_a_config_that_says_what_we_cannot_do(config, message):
    assert message in sentence(LAYOUTS["hf_vits16"], "dinov3", config=config)


@pytest.mark.parametrize(
    ("layout", "kind", "option", "widths"),
    [
        ("dinotxt_tiny", "dinotxt", "text.heads", None),
        ("anyup", "anyup", "early.heads", (128, 64)),
        ("hf_vits16", "dinov3", "vision.heads", (384, 192)),
    ],
)
def test_heads_that_no_file_says_are_said_to_be_assumed(layout, kind, option, widths):
    shapes = LAYOUTS.get(layout) or {key: value.shape for key, value in official(layout).items()}
    if widths:  # a size that was never released
        shapes = {key: [-(-size * widths[1] // widths[0]) for size in shape] for key, shape in shapes.items()}
    notes = recognise(described(shapes), kind).notes
    assert any(note.startswith(f"no file says {option}; ") for note in notes)
    assert not any(option in note for note in recognise(described(shapes), kind, [f"{option}=1"]).notes)
    assert not any("no file says" in note for note in recognise(described(LAYOUTS["hf_vits16"]), "dinov3").notes)
