"""Convert published data sets to instruction sets."""
