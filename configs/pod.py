"""The paper's training on pods: bfloat16 arithmetic, the towers' blocks recomputed, the head's as TPU kernels.

    dinov3seg plan --config pod --topology v5e:16x16
    dinov3seg plan --config pod:vit7b,batch=64 --topology v5p:4x4x4
    dinov3seg train --config pod:batch=512,sqrt_rate,anyup --config.init_from=weights/dinotxt,weights/sam,weights/anyup

Words after the colon, in any order, separated by commas; the first of each kind is the default:

    vitl, vit7b          the backbone
    batch=256            crops in a step, on all chips together; docs/pods.md has what fits
    paper_crops          320,000 crops in all, as 80,000 steps of 4: 2.7 epochs of COCO-Stuff
    paper_steps          80,000 steps, whatever the batch: 173 epochs of COCO-Stuff with 256
    sqrt_rate            2e-4 times the square root of batch / 4, after a warm-up over 5 % of the steps
    linear_rate          2e-4 times batch / 4, after the same warm-up
    paper_rate           2e-4, no warm-up
    anyup                early refinement as AnyUp's weights need it

Give the batch here and not as --config.train.batch_size, which steps and rate would not follow.

The protocol of the field is CAT-Seg's: batches of 4, for which 2e-4 was found. What larger ones need is not published
for this model, so the rules are ours to choose. The square root is the rule that keeps Adam's noise (Malladi et al.,
2022, arXiv 2205.10287). The linear one is SGD's (Goyal et al., 2017, arXiv 1706.02677), from where the warm-up is; with
Adam and large batches it is likely to diverge. None of them was tried at this size.
"""

from ml_collections import ConfigDict

from dinov3seg_jax.config import default_config, to_config_dict
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.presets import ANYUP, VISION

PAPER_BATCH, PAPER_STEPS, PAPER_RATE = 4, 80_000, 2e-4
PAPER_CROPS = PAPER_BATCH * PAPER_STEPS
WARM_UP = 0.05  # of the steps

BACKBONES = {"vitl": "vitl16", "vit7b": "vit7b16"}
STEPS = {"paper_crops": lambda batch: round(PAPER_CROPS / batch), "paper_steps": lambda batch: PAPER_STEPS}
RATES = {"sqrt_rate": 0.5, "linear_rate": 1, "paper_rate": 0}  # powers of batch / PAPER_BATCH
OTHERS = ("anyup", "batch=256")


def get_config(words: str = "") -> ConfigDict:
    """The run that the words choose.

    Raises:
        UserError: a word is unknown, is no number of crops, or says otherwise than one before it.
    """
    chosen = [word.strip() for word in words.split(",") if word.strip()]
    batches = [word for word in chosen if word.startswith("batch=")]
    for word in chosen:
        if word not in (*BACKBONES, *STEPS, *RATES, "anyup", *batches):
            known = ", ".join((*BACKBONES, *STEPS, *RATES, *OTHERS))
            raise UserError(f"configs/pod.py knows {known} and not '{word}'; name some of them, separated by commas")
    backbone, steps, rate, batch = (
        _only([word for word in chosen if word in kind] or [*kind][:1])
        for kind in (BACKBONES, STEPS, RATES, batches or ["batch=256"])
    )
    size = batch.removeprefix("batch=")
    if not size.isdecimal() or not int(size):
        raise UserError(f"configs/pod.py: '{batch}' is no number of crops; name one, as in batch=256")

    config = default_config()
    config.workdir = f"runs/pod/{backbone}"
    config.data.train.name = "coco_stuff_171"
    config.data.eval.name = "coco_stuff_171"
    config.model.vision = to_config_dict(VISION[BACKBONES[backbone]])
    if "anyup" in chosen:
        config.model.early = to_config_dict(ANYUP)
    config.model.dtype = "bfloat16"
    config.model.remat = True
    config.model.late.kernel = "fused"
    config.model.late.class_kernel = "fused"
    config.model.decoder.packed = True
    config.train.frozen_dtype = "bfloat16"
    config.fsdp_frozen = backbone == "vit7b"  # the others' frozen parameters are 2.2 GB: every chip can hold them
    config.fsdp_gather_once = True
    config.data.workers = 8

    config.train.batch_size = int(size)
    config.train.steps = max(STEPS[steps](int(size)), 1)
    config.train.learning_rate = PAPER_RATE * (int(size) / PAPER_BATCH) ** RATES[rate]
    config.train.warmup_steps = 0 if rate == "paper_rate" else round(WARM_UP * config.train.steps)
    return config


def _only(words: list[str]) -> str:
    first, *others = dict.fromkeys(words)
    if others:
        raise UserError(f"configs/pod.py: '{first}' and '{others[0]}' cannot both be; leave one out")
    return first
