"""The command `dinov3seg`: a file for each of its commands, and what they share."""
