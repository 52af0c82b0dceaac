"""Leaves that every package may import: files, images, views, videos, records, scene ids and worker processes."""
