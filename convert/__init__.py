"""`python -m convert`, for a checkout; what it does is in `dinov3seg_jax/convert`."""
