"""What `test_class_shares.py` runs in a process of its own, since the number of devices is fixed when JAX starts.

    python -m tests.models.class_shares "8 classes, two layers"

prints, one line of JSON for each case named, how far the head on eight devices is from the head on one.
"""

import dataclasses
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from dinov3seg_jax.costs.hlo import Program
from dinov3seg_jax.models import kernel_parts
from dinov3seg_jax.models.graph import bind, build, initialize
from dinov3seg_jax.models.mesh import BY_EXAMPLE
from dinov3seg_jax.models.semantic_prior import Guidance
from dinov3seg_jax.training import losses
from dinov3seg_jax.training.agreement import count_agreement
from dinov3seg_jax.training.sharding import make_mesh, on_mesh
from tests.tiny import MODEL

HEAD = ("embed_correlation", "project_text", "late", "decoder")
GRID, NAMES = 4, 12
FUSED = {"dim": 128, "heads": 4, "window": 4, "kernel": "fused", "class_kernel": "fused"}
CASES: dict[str, tuple[tuple[int, int], int, int, dict[str, Any]]] = {  # mesh, batch, classes, options of late
    "8 classes, two layers": ((1, 8), 1, 8, {"layers": 2}),
    "5 classes, learned entries": ((2, 4), 4, 5, {"remat": True, "pad_classes": 7}),
    "softmax, learned entries": ((4, 2), 4, 5, {"class_attention": "full", "pad_classes": 9, "pooling": 2}),
    "a kernel for TPUs": ((2, 4), 2, 6, FUSED),
}


def main(names: list[str]) -> None:
    """Run these cases."""
    kernel_parts.INTERPRET = True
    for name in names:
        print(json.dumps({"case": name, **run(*CASES[name])}), flush=True)


def run(shape: tuple[int, int], batch: int, classes: int, options: dict[str, Any]) -> dict[str, Any]:
    """Differences on the scale of what differs, and the collectives of the pass forwards."""
    late = dataclasses.replace(MODEL.late, **options)
    model = dataclasses.replace(MODEL, late=late)
    graph, _ = build(model)
    parameters = initialize(model, jax.random.key(0))
    head = {name: parameters.pop(name) for name in list(parameters) if name.startswith(HEAD)}
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    guidance = Guidance(
        drawn(batch, GRID, GRID, late.appearance_dim or late.dim),
        tuple(
            drawn(batch, GRID * scale, GRID * scale, width)
            for scale, width in zip((2, 4), model.decoder.guidance_dims, strict=True)
        ),
    )
    head = {name: x + 0.1 * drawn(*x.shape) for name, x in head.items()}
    label = rng.integers(-1, classes, (batch, 20, 20), np.int32)
    class_ids = np.stack([rng.permutation(NAMES)[:classes] for _ in range(batch)]).astype(np.int32)
    given = drawn(batch, classes, GRID, GRID, 2), guidance, drawn(batch, classes, 64), label, class_ids
    losses.LOGITS_AT_ONCE = 2 * 20 * 20  # of a device: in parts
    weights = rng.random((batch, classes)).astype(np.float32)

    def loss(head: Any, correlation: Any, guidance: Any, text: Any, label: Any, class_ids: Any) -> Any:
        logits = bind(graph, head | parameters).refine_late_and_decode(correlation, guidance, text)
        counts = count_agreement(logits, label, class_ids, NAMES)
        return losses.sigmoid_cross_entropy(logits, label, weights), (logits, counts)

    of_all = jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True)
    expected = jax.jit(of_all)(head, *given)
    mesh = make_mesh(*shape)
    everywhere, shared = NamedSharding(mesh, P()), NamedSharding(mesh, BY_EXAMPLE)
    at = (everywhere, *[shared] * len(given))
    found = jax.jit(on_mesh(of_all, mesh), in_shardings=at)(head, *given)
    forwards = jax.jit(on_mesh(lambda *all_of_it: loss(*all_of_it)[0], mesh), in_shardings=at)
    traffic = Program(forwards.lower(head, *given).compile().as_text()).traffic()

    def difference(found: Any, expected: Any) -> float:
        scale = float(jnp.abs(expected).max())
        return float(jnp.abs(np.asarray(found) - np.asarray(expected)).max()) / max(scale, 1e-3)

    (found_loss, (found_logits, found_counts)), gradients = found
    (expected_loss, (expected_logits, expected_counts)), expected_gradients = expected
    return {
        "loss": difference(found_loss, expected_loss),
        "logits": difference(found_logits, expected_logits),
        "gradients": max(jax.tree.leaves(jax.tree.map(difference, gradients, expected_gradients))),
        "counts": int(np.abs(np.asarray(found_counts) - np.asarray(expected_counts)).max()),
        "collectives": {kind: list(row) for kind, row in traffic.by_kind().items()},
        "maps": 4 * batch * classes * GRID * GRID * late.dim,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
