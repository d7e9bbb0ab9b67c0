"""`python eval.py`, for a checkout; the same as `dinov3seg eval`."""

from dinov3seg_jax.errors import run_command


def main() -> int:
    """See `dinov3seg_jax.cli.eval`; imported late, so that Ctrl-C has one line for an answer."""
    from dinov3seg_jax.cli.eval import main

    return main(prog="eval.py")


if __name__ == "__main__":
    run_command(main)
