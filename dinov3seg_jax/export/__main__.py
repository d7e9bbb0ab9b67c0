"""`python -m dinov3seg_jax.export`; the same as `dinov3seg export`."""

from dinov3seg_jax.cli.export import main
from dinov3seg_jax.errors import run_command

if __name__ == "__main__":
    run_command(lambda: main(prog="python -m dinov3seg_jax.export"))
