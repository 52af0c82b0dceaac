"""Training of the teachers themselves, on scenes with known depth, cameras and categories."""
