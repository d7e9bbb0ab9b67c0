"""`python predict.py`, for a checkout; the same as `dinov3seg predict`."""

from dinov3seg_jax.errors import run_command


def main() -> int:
    """See `dinov3seg_jax.cli.predict`; imported late, so that Ctrl-C has one line for an answer."""
    from dinov3seg_jax.cli.predict import main

    return main(prog="predict.py")


if __name__ == "__main__":
    run_command(main)
