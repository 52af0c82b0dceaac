"""Alignment of Spa3-VLM: its adapter learns to find 3-D in the latents before instruction tuning."""
