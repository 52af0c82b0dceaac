"""Models; importing this package registers them with transformers' Auto classes."""
