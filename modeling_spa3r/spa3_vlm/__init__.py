"""Spa3-VLM: a vision-language model that queries the latent of a scene."""
