"""`python train.py`, for a checkout; the same as `dinov3seg train`."""

from dinov3seg_jax.errors import run_command


def main() -> int:
    """See `dinov3seg_jax.cli.train`; imported late, so that Ctrl-C has one line for an answer."""
    from dinov3seg_jax.cli.train import main

    return main(prog="train.py")


if __name__ == "__main__":
    run_command(main)
