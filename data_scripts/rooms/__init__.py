"""Rooms: a procedural world with known cameras, depth and objects."""
