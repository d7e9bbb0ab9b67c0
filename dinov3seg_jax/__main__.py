"""`python -m dinov3seg_jax predict ...` is `dinov3seg predict ...`, where the console script is not on the path."""

from dinov3seg_jax.cli.main import run

if __name__ == "__main__":
    run()
