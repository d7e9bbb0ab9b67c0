"""Segment pictures into classes you name; see `python predict.py --help`."""

from dinov3seg_jax.errors import run_command


def main() -> int:
    """See `dinov3seg_jax.cli.predict`."""
    from dinov3seg_jax.cli.predict import main

    return main()


if __name__ == "__main__":
    run_command(main)
