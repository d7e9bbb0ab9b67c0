"""The paper's ablation on cluttered scenes: every variant of `configs/ablation.py`, several seeds, one table.

    python -m benchmarks.ablation [--variants full no_late] [--seeds 3] [--out runs/ablation]
    python -m benchmarks.ablation --quick       (one seed, shorter training: under an hour on two cores)

For each seed the towers are trained once and shared by all variants, as the paper shares dinov3.txt, and variants that
differ in inference alone share one training. What the towers do alone is scored first. What is done is not done again:
an interrupted run goes on.
"""

import argparse
import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from scipy import stats

from configs.ablation import VARIANTS
from dinov3seg_jax.config import Config
from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.errors import UserError, run_command
from dinov3seg_jax.evaluation.evaluate import evaluate
from dinov3seg_jax.files import write_whole
from dinov3seg_jax.training.loop import towers_alone, train

SCORES = {"seen_miou": "seen mIoU", "unseen_miou": "unseen mIoU", "boundary_iou": "boundary IoU"}
ZERO_SHOT = "zero_shot"
CONFIDENCE = 0.95  # of intervals
QUICK = ("train.backbone_steps=350", "train.alignment_steps=1250", "train.steps=300")
Results = dict[str, dict[str, dict[str, float]]]  # variant, seed, score


def main() -> None:
    """Train and score what is missing, and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, help="how many, from 0; default 3, or 1 with --quick")
    parser.add_argument("--quick", action="store_true", help=f"shorter: {', '.join(QUICK)}")
    parser.add_argument("--out", type=Path, help="default runs/ablation, or runs/ablation_quick")
    options = parser.parse_args()
    seeds = options.seeds if options.seeds is not None else 1 if options.quick else 3
    if seeds < 1:
        raise UserError(f"--seeds is {seeds}; give at least 1.")
    out = options.out or Path("runs/ablation_quick" if options.quick else "runs/ablation")
    overrides = QUICK if options.quick else ()
    record = out / "results.json"
    results: Results = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}

    def keep(variant: str, seed: int, scores: dict[str, float]) -> None:
        results.setdefault(variant, {})[str(seed)] = {name: scores[name] for name in SCORES}
        write_whole(record, json.dumps(results, indent=1).encode())
        write_whole(out / "table.md", table(results).encode())

    for seed in range(seeds):
        towers_config = towers_of(config_of("full", seed, out, overrides))
        towers = train(towers_config)
        if str(seed) not in results.get(ZERO_SHOT, {}):
            keep(ZERO_SHOT, seed, evaluate(towers_config, towers, zero_shot=True))
        for variant in options.variants:
            if str(seed) not in results.get(variant, {}):
                config = dataclasses.replace(config_of(variant, seed, out, overrides), init_from=str(towers))
                keep(variant, seed, evaluate(config, train(config)))
    print(table(results))


def config_of(variant: str, seed: int, out: Path, overrides: Sequence[str] = ()) -> Config:
    """The run that a variant's scores are of; variants that differ in inference alone have the run of `full`."""
    config = load_config(f"configs/ablation.py:{variant}", [f"seed={seed}", *overrides])
    changes_inference_only = all(option.startswith("inference.") for option in VARIANTS[variant])
    return dataclasses.replace(config, workdir=str(out / f"{'full' if changes_inference_only else variant}_{seed}"))


def towers_of(config: Config) -> Config:
    """The run of one seed's towers, as `train` makes them where there is nothing to start from."""
    return towers_alone(dataclasses.replace(config, workdir=str(Path(config.workdir).with_name(f"seed_{config.seed}"))))


def table(results: Results) -> str:
    """Mean and sample standard deviation over the seeds; then the differences to the whole method.

    These are paired by seed, so that what a seed's towers are worth cancels; behind ± is their `half_interval`.
    """
    titles = [*SCORES.values(), *(f"{title}, to full" for title in SCORES.values())]
    lines = [f"| variant | seeds | {' | '.join(titles)} |", f"| --- | {' | '.join(['---:'] * (1 + len(titles)))} |"]
    for variant in (name for name in (ZERO_SHOT, *VARIANTS) if name in results):
        columns = {name: [seed[name] for seed in results[variant].values()] for name in SCORES}
        cells = [f"{statistics.mean(values):.1f}{_spread(values)}" for values in columns.values()]
        cells += [_difference(results, variant, name) for name in SCORES]
        lines.append(f"| {variant} | {len(results[variant])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def differences(results: Results, variant: str, score: str) -> list[float]:
    """To the whole method, of each seed that has both."""
    full = results.get("full", {})
    return [seed[score] - full[number][score] for number, seed in results[variant].items() if number in full]


def half_interval(pairs: Sequence[float]) -> float:
    """Half the interval that holds the mean of all seeds with 95 % confidence, by Student's t."""
    return stats.t.ppf((1 + CONFIDENCE) / 2, len(pairs) - 1) * statistics.stdev(pairs) / len(pairs) ** 0.5


def _difference(results: Results, variant: str, score: str) -> str:
    pairs = differences(results, variant, score)
    if variant == "full" or not pairs:
        return "–"
    return f"{statistics.mean(pairs):+.1f}" + (f" ± {half_interval(pairs):.1f}" if len(pairs) > 1 else "")


def _spread(values: list[float]) -> str:
    return f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""


if __name__ == "__main__":
    run_command(main)
