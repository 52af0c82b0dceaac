"""VGGT: the geometry backbone."""
