"""Released models that can be had by name: what is known of each, and nothing that is not.

Sizes and checksums are of the published files. Where none is known here, the hub's own checksum is compared, and
`dinov3seg models` says "?".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PublishedFile:
    """One file of a release."""

    name: str
    repository: str = ""  # on the Hugging Face hub: "owner/name", after "spaces/" where it is a Space
    address: str = ""  # elsewhere; with neither, whoever published it hands it out
    size: int = 0  # bytes; 0: not known
    sha256: str = ""  # in hex; empty: not known


@dataclass(frozen=True)
class Released:
    """A row of the table."""

    task: str
    kind: str  # of source, for `convert`
    files: tuple[PublishedFile, ...]
    width: int  # of the vision tower, which tells the sizes of one kind apart
    parameters: int
    licence: str
    page: str  # where it is published
    cite: str
    scores: Mapping[str, float] = field(default_factory=dict)  # published mIoU in percent, by benchmark
    accept: str = ""  # terms that must be accepted before it is fetched
    gated: bool = False  # handed out to who asks for it
    use: str = "predict"  # what it is for: "predict", or "init_from"

    @property
    def size(self) -> int:
        """Bytes to download, as far as they are known: the weights, or 0."""
        return sum(file.size for file in self.files)

    @property
    def memory(self) -> int:
        """Bytes that the weights alone take, as float32."""
        return 4 * self.parameters


ZERO_SHOT, TRAINED, TOWERS = "zero-shot segmentation", "segmentation", "towers to train a head on"
DINOV3_LICENCE = "DINOv3 License, https://ai.meta.com/resources/models-and-libraries/dinov3-license/"
BENCHMARKS = ("A-847", "PC-459", "A-150", "PC-59", "PAS-20", "PAS-20b")
CATSEG_LICENCE = "MIT (the code; nothing more is stated for the weights)"
TIPS_LICENCE = "Apache-2.0"


def _tips(size: str, width: int, parameters: int, score: float, size_in_bytes: int, sha256: str = "") -> Released:
    repository = f"google/tipsv2-{size}"
    return Released(
        ZERO_SHOT,
        "tips",
        (
            PublishedFile("model.safetensors", repository, size=size_in_bytes, sha256=sha256),
            PublishedFile("tokenizer.model", repository),
        ),
        width,
        parameters,
        TIPS_LICENCE,
        f"https://huggingface.co/{repository}",
        "TIPSv2, arXiv 2604.12012",
        {"A-150": score},
    )


def _catseg(file: str, width: int, parameters: int, scores: tuple[float, ...]) -> Released:
    return Released(
        TRAINED,
        "catseg",
        (PublishedFile(file, "spaces/hamacojr/CAT-Seg-weights"),),
        width,
        parameters,
        CATSEG_LICENCE,
        "https://github.com/cvlab-kaist/CAT-Seg",
        "CAT-Seg, arXiv 2303.11797",
        dict(zip(BENCHMARKS, scores, strict=True)),
    )


def _clip(file: str, width: int, parameters: int, sha256: str) -> Released:
    address = f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file}"
    return Released(
        TOWERS,
        "clip",
        (PublishedFile(file, address=address, sha256=sha256),),
        width,
        parameters,
        "MIT",
        "https://github.com/openai/CLIP",
        "CLIP, arXiv 2103.00020",
        use="init_from",
    )


RELEASED: dict[str, Released] = {
    "tipsv2-b14": _tips(
        *("b14", 768, 195_948_288, 17.4, 783_830_160),
        "c19aec1a777c381cc3d351b4882c56fc3041505c8f5b97535816a92dce3d20c5",
    ),
    "tipsv2-l14": _tips(
        *("l14", 1024, 487_941_120, 24.7, 1_951_820_760),
        "c75707eabca655e641a6c47a59dd26b347290ceadb993b34af184e7f654c5809",
    ),
    "tipsv2-so400m14": _tips("so400m14", 1152, 861_726_816, 23.3, 3_446_991_224),
    "tipsv2-g14": _tips("g14", 1536, 1_525_085_696, 17.8, 6_100_424_272),
    "catseg-b": _catseg("model_base.pth", 768, 154_455_266, (12.0, 19.0, 31.8, 57.5, 94.6, 77.3)),
    "catseg-l": _catseg("model_large.pth", 1024, 433_892_834, (16.0, 23.8, 37.9, 63.3, 97.0, 82.5)),
    "clip-b16": _clip(
        *("ViT-B-16.pt", 768, 149_620_740),
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    ),
    "clip-l14-336": _clip(
        *("ViT-L-14-336px.pt", 1024, 427_944_196),
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
    ),
    "cafedino": Released(
        "segmentation of aerial pictures",
        "cafedino",
        (),  # the name of the file in the repository is not known here
        1024,
        869_190_402,
        "not stated; the weights contain Meta's, which are under the DINOv3 License",
        "https://huggingface.co/rfaulken/cafedino",
        "CAFe-DINO, arXiv 2605.03175",
        accept=f"no licence is stated for it, and it contains Meta's weights ({DINOV3_LICENCE})",
    ),
    "dinotxt": Released(
        ZERO_SHOT,
        "dinotxt",
        (
            PublishedFile(
                "dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth",
                size=1_213_050_671,
                sha256="8aa4cbddda325040fc78db2c272754af6ebe8ff2c55f6ec4f1964d8890f66035",
            ),
            PublishedFile(
                "dinov3_vitl16_dinotxt_vision_head_and_text_encoder-a442d8f5.pth",
                size=2_253_936_683,
                sha256="a442d8f52a3a7ad715bf6b7d8117fb3a84d54249389b0a13f6956cd0d2eca4f0",
            ),
        ),
        1024,
        866_685_457,
        DINOV3_LICENCE,
        "https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/",
        "DINOv3, arXiv 2508.10104; dino.txt, arXiv 2412.16334",
        {"A-150": 24.7},
        accept=DINOV3_LICENCE,
        gated=True,
    ),
}
