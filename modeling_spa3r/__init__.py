"""Models, processors and checkpoints."""
