"""A small world of rendered rooms in which everything is learned from nothing, and its checkpoints."""
