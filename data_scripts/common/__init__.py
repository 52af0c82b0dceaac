"""Helpers shared by the data code: files, images, videos, records, worker processes. They import nothing of ours."""
