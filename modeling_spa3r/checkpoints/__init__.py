"""Checkpoints: importing published weights, assembling, loading and publishing."""
