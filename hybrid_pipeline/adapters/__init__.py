"""Bridges between a language model's states and a recursive model's latents."""
