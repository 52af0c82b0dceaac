"""Everything that runs a model over data."""
