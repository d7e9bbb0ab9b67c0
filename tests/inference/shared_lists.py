"""What `test_shared_lists.py` runs in a process of its own, since the number of devices is fixed when JAX starts.

    python -m tests.inference.shared_lists plain

prints, one line of JSON for each case named, whether four devices find what one does.
"""

import dataclasses
import json
import sys
from typing import Any

import jax
import numpy as np

from dinov3seg_jax.config import Config, InferenceConfig
from dinov3seg_jax.inference.result import Segmentation
from dinov3seg_jax.inference.segmenter import Segmenter
from dinov3seg_jax.models.graph import initialize
from tests.closeness import SCORES
from tests.tiny import MODEL

NAMES = tuple(f"name {number}" for number in range(23))
PLAIN: dict[str, Any] = {"image_size": 32, "window": 16, "stride": 16, "class_chunk": 2}
CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {  # pictures, options of inference, options of late
    "plain": (1, {}, {"layers": 2}),
    "two pictures, most classes rejected": (2, {"best_classes": 7}, {}),
    "learned entries, blended windows": (1, {"fusion": "logits", "kept_megabytes": 0}, {"pad_classes": 40}),
}


def main(cases: list[str]) -> None:
    """Run these cases."""
    for case in cases:
        print(json.dumps({"case": case, **run(*CASES[case])}), flush=True)


def run(count: int, options: dict[str, Any], late: dict[str, Any]) -> dict[str, Any]:
    """Whether labels are the same, how far scores are apart, and how many rows and classes a device decodes at once."""
    model = dataclasses.replace(MODEL, late=dataclasses.replace(MODEL.late, **late))
    config = Config(model=model, inference=InferenceConfig(**(PLAIN | options)))
    parameters = initialize(model, jax.random.key(0))
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (50 + 9 * place, 60, 3), np.uint8) for place in range(count)]
    one, four = (Segmenter(config, parameters, jax.devices()[:devices]) for devices in (1, 4))
    decoded = []
    expected = one.segment_arrays(pictures, NAMES, scores=True)
    programs = four.chunks._for_copies(4 // count)
    decode = programs.decode

    def watch(*arguments: Any) -> Any:
        logits = decode(*arguments)
        decoded.append(logits.sharding.shard_shape(logits.shape))
        return logits

    four.chunks._for_copies = lambda copies: programs._replace(decode=watch)
    found = four.segment_arrays(pictures, NAMES, scores=True)
    pairs = list(zip(found, expected, strict=True))
    return {
        "labels": all(same_labels(a, b) for a, b in pairs),
        "confidence": max(float(np.abs(a.confidence - b.confidence).max()) for a, b in pairs),
        "scores": max(float(np.abs(a.scores - b.scores).max()) for a, b in pairs),
        "labels found": len(np.unique(expected[0].labels)),
        "chunks": len(decoded),
        "of a device": decoded[0][:2],
    }


def same_labels(found: Segmentation, expected: Segmentation) -> bool:
    """But where the two best scores are no further apart than two programs may round them; nearly nowhere they are."""
    second, best = np.sort(np.asarray(expected.scores), axis=0)[-2:]
    decided = best - second > 2 * SCORES
    return bool(decided.mean() > 0.9) and np.array_equal(found.labels[decided], expected.labels[decided])


if __name__ == "__main__":
    main(sys.argv[1:])
