"""Configurations, architecture presets and training recipes."""
