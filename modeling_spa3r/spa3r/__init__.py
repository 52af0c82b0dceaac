"""Spa3R: one latent of a scene from its views."""
