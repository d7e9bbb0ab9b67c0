"""`python -m convert KIND --source FILE... --out FOLDER`; the same as `dinov3seg convert`."""

from dinov3seg_jax.cli.convert import main
from dinov3seg_jax.errors import run_command

if __name__ == "__main__":
    run_command(lambda: main(prog="python -m convert"))
