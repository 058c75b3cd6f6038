"""One file for each architecture: its latents, its levels and its cycle."""
