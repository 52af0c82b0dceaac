"""Leaves that every package may import: files, images, videos, records, scene ids and worker processes."""
