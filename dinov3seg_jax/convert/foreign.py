"""Models that people take for one of ours, told by keys that only they have, with what to do instead."""

import re
from collections.abc import Iterable
from typing import NamedTuple


class Foreign(NamedTuple):
    """A model that is not converted."""

    marks: tuple[str, ...]  # regexes, each of a whole key that it has, whatever wraps it
    what: str
    mend: str


DINOV3 = "take a DINOv3 backbone, such as dinov3_vitl16_pretrain_lvd1689m"
DINOTXT = "image and text are compared by dinov3.txt here, so take its files"
SAM = "take an official SAM file, such as sam_vit_l_0b3195.pth"

FOREIGN = (
    Foreign(
        (r"(?:vision/backbone|vision/head|text|sam|early|late|decoder|linear)/.*",),
        "weights that this project wrote itself",
        "name their folder in --config.init_from",
    ),
    Foreign((r".*\.lora_(?:A|B)\..*",), "a LoRA adapter, which is no model by itself", "merge it into its model first"),
    Foreign(
        (r"sam_mask_decoder\..*|trunk\.blocks\.\d+\..*|image_encoder\.trunk\..*|vision_encoder\.backbone\..*",),
        "SAM 2 or a later one",
        SAM,
    ),
    Foreign((r"blocks\.0\.attn\.rel_pos_h", r"blocks\.0\.mlp\.fc1\.weight"), "SAM in timm's layout, or ViTDet", SAM),
    Foreign((r"vision_encoder\.layers\.0\.attn\.rel_pos_h",), "SAM in Hugging Face's layout", SAM),
    Foreign((r"(?:visual|clip_model\.visual)\.trunk\..*",), "OpenCLIP", "take OpenAI's CLIP, or dinov3.txt's files"),
    Foreign((r"vision_model\.embeddings\..*",), "CLIP or SigLIP in Hugging Face's layout", DINOTXT),
    Foreign(
        (r"cls_token", r"pos_embed", r"decoder_pos_embed|decoder_embed\.weight"),
        "MAE, an older ViT with learned positions",
        DINOV3,
    ),
    Foreign(
        (r"cls_token", r"pos_embed", r"blocks\.(?:0\.)?0\.ls1\.gamma"), "DINOv2, which has learned positions", DINOV3
    ),
    Foreign((r"cls_token", r"pos_embed"), "a ViT with learned positions, not DINOv3", DINOV3),
    Foreign(
        (r"embeddings\.cls_token", r"embeddings\.position_embeddings"),
        "DINOv2 or another ViT with learned positions, in Hugging Face's layout",
        DINOV3,
    ),
    Foreign(
        (
            r"stages\.0\.0\.dwconv\.weight|stages\.0\.layers\.0\.depthwise_conv\.weight"
            r"|stages\.0\.blocks\.0\.conv_dw\.weight",
        ),
        "a ConvNeXt",
        "of DINOv3 only the ViTs are converted; take one of those",
    ),
    Foreign((r"layer1\.0\.conv1\.weight",), "a ResNet", DINOV3),
    Foreign((r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table",), "a Swin transformer", DINOV3),
)


def looks_like(keys: Iterable[str]) -> Foreign | None:
    """The model that keys, without known wrappers, are of; None if it is none of these."""
    known = list(keys)
    return next((model for model in FOREIGN if all(_any(mark, known) for mark in model.marks)), None)


def _any(mark: str, keys: list[str]) -> bool:
    return any(re.fullmatch(rf"(?:.*\.)?(?:{mark})", key) for key in keys)
