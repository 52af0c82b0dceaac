"""Scenes on disk, and the views that training draws from them."""
