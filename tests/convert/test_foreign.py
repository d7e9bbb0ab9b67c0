"""Models that people take for one of ours are called by their names, with what to take instead."""

import pytest

from dinov3seg_jax.convert.foreign import looks_like
from dinov3seg_jax.convert.recognise import KINDS
from tests.convert.files import LAYOUTS
from tests.convert.test_recognise import sentence

VIT = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight")
OTHERS = {
    "DINOv2": ((*VIT, "mask_token", "register_tokens", "blocks.0.ls1.gamma"), "DINOv2"),
    "DINOv2, in chunks": (("cls_token", "pos_embed", "blocks.0.0.ls1.gamma"), "DINOv2"),
    "DINOv2 of timm": ((*VIT, "reg_token", "blocks.0.ls1.gamma"), "DINOv2"),
    "DINOv2 of Hugging Face": (
        (
            "embeddings.cls_token",
            "embeddings.position_embeddings",
            "encoder.layer.0.attention.attention.query.weight",
        ),
        "learned positions, in Hugging Face's layout",
    ),
    "DINO": ((*VIT, "norm.weight"), "a ViT with learned positions, not DINOv3"),
    "DINO's checkpoint": (tuple(f"teacher.backbone.{key}" for key in VIT), "a ViT with learned positions"),
    "MAE": ((*VIT, "mask_token", "decoder_pos_embed", "decoder_embed.weight"), "MAE"),
    "OpenCLIP with timm": (("visual.trunk.cls_token", "visual.trunk.pos_embed", "text.logit_scale"), "OpenCLIP"),
    "CLIP of Hugging Face": (("vision_model.embeddings.class_embedding", "text_model.final_layer_norm.bias"), "SigLIP"),
    "SAM 2": (
        ("image_encoder.trunk.pos_embed", "image_encoder.trunk.blocks.0.attn.qkv.weight", "sam_mask_decoder.x.weight"),
        "SAM 2",
    ),
    "SAM of Hugging Face": (("vision_encoder.pos_embed", "vision_encoder.layers.0.attn.rel_pos_h"), "Hugging Face's"),
    "SAM of timm": (("pos_embed", "blocks.0.attn.rel_pos_h", "blocks.0.mlp.fc1.weight"), "SAM in timm's layout"),
    "ConvNeXt of DINOv3": (("downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"), "a ConvNeXt"),
    "ConvNeXt of Hugging Face": (("model.stages.0.layers.0.depthwise_conv.weight",), "a ConvNeXt"),
    "ConvNeXt of timm": (("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"), "a ConvNeXt"),
    "ResNet": (("conv1.weight", "layer1.0.conv1.weight", "fc.weight"), "a ResNet"),
    "Swin": (("layers.0.blocks.0.attn.relative_position_bias_table",), "a Swin transformer"),
    "an adapter": (("base_model.model.layer.0.attention.q_proj.lora_A.weight",), "a LoRA adapter"),
    "our own": (("vision/backbone/cls_token", "vision/backbone/periods"), "weights that this project wrote itself"),
}


@pytest.mark.parametrize("model", OTHERS)
@pytest.mark.parametrize("kind", ["dinov3", "sam", "dinotxt"])
def test_another_model_is_named_whatever_it_was_given_for(model, kind):
    keys, name = OTHERS[model]
    message = sentence({key: [1, 4, 8] for key in keys}, kind)
    assert "looks like" in message
    assert name in message
    assert message.count("\n") == 0


def test_no_release_looks_like_another_model():
    for name, shapes in LAYOUTS.items():
        if name.startswith("tipsv2"):  # whose vision tower is built like DINOv2; it is told by its text tower
            continue
        assert looks_like(shapes) is None, name


def test_an_unknown_model_is_told_what_is_taken():
    message = sentence({"fc.weight": [2, 2]}, "dinov3")
    assert all(row.what in message for row in KINDS.values())
