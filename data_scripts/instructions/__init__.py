"""Instruction sets: converters for published data sets."""
