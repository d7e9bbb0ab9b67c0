"""The paper's ablation on painted scenes: every variant of `configs/ablation.py`, several seeds, one table.

    python -m benchmarks.ablation [--variants full no_late] [--seeds 3] [--out runs/ablation]

For each seed the encoders are aligned once and shared by all variants, as the paper shares dinov3.txt, and variants
that differ in inference alone share one training. What is done is not done again: an interrupted run goes on.
"""

import argparse
import dataclasses
import json
import statistics
from pathlib import Path

from configs.ablation import VARIANTS
from dinov3seg_jax.config import Config
from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.errors import UserError, run_command
from dinov3seg_jax.evaluation.evaluate import evaluate
from dinov3seg_jax.files import write_whole
from dinov3seg_jax.training.loop import towers_alone, train

SCORES = ("seen_miou", "unseen_miou")
Results = dict[str, dict[str, dict[str, float]]]  # variant, seed, score


def main() -> None:
    """Train and score what is missing, and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--steps", type=int, help="of the head's training, in place of the config's")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    options = parser.parse_args()
    if options.seeds < 1:
        raise UserError(f"--seeds is {options.seeds}; give at least 1.")
    record = options.out / "results.json"
    results: Results = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    for seed in range(options.seeds):
        towers = _aligned(_config("full", seed, options.out, options.steps))
        for variant in options.variants:
            if str(seed) in results.get(variant, {}):
                continue
            config = dataclasses.replace(_config(variant, seed, options.out, options.steps), init_from=str(towers))
            scores = evaluate(config, train(config))
            results.setdefault(variant, {})[str(seed)] = {name: scores[name] for name in SCORES}
            write_whole(record, json.dumps(results, indent=1).encode())
            write_whole(options.out / "table.md", table(results).encode())
    print(table(results))


def _config(variant: str, seed: int, out: Path, steps: int | None) -> Config:
    overrides = [f"seed={seed}", *([f"train.steps={steps}"] if steps else [])]
    config = load_config(f"configs/ablation.py:{variant}", overrides)
    changes_inference_only = all(option.startswith("inference.") for option in VARIANTS[variant])
    return dataclasses.replace(config, workdir=str(out / f"{'full' if changes_inference_only else variant}_{seed}"))


def _aligned(config: Config) -> Path:
    """The encoders of one seed, as `train` aligns them where there is nothing to start from."""
    workdir = Path(config.workdir).with_name(f"seed_{config.seed}")
    return train(towers_alone(dataclasses.replace(config, workdir=str(workdir))))


def table(results: Results) -> str:
    """Mean and sample standard deviation over the seeds, of the scores and of their differences to the whole method."""
    lines = [
        "| variant | seeds | seen mIoU | unseen mIoU | seen, to full | unseen, to full |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for variant in (name for name in VARIANTS if name in results):
        columns = {name: [seed[name] for seed in results[variant].values()] for name in SCORES}
        cells = [f"{statistics.mean(values):.1f} ± {_spread(values)}" for values in columns.values()]
        cells += [_difference(results, variant, name) for name in SCORES]
        lines.append(f"| {variant} | {len(results[variant])} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _difference(results: Results, variant: str, score: str) -> str:
    """Paired by seed, so that what a seed's encoders are worth cancels."""
    full = results.get("full", {})
    pairs = [seed[score] - full[number][score] for number, seed in results[variant].items() if number in full]
    if variant == "full" or not pairs:
        return "–"
    return f"{statistics.mean(pairs):+.1f} ± {_spread(pairs)}"


def _spread(values: list[float]) -> str:
    return f"{statistics.stdev(values):.1f}" if len(values) > 1 else "–"


if __name__ == "__main__":
    run_command(main)
