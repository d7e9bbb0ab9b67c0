"""`python -m dinov3seg_jax.data.prepare`; the same as `dinov3seg prepare`."""

from dinov3seg_jax.cli.prepare import main
from dinov3seg_jax.errors import run_command

if __name__ == "__main__":
    run_command(lambda: main(prog="python -m dinov3seg_jax.data.prepare"))
