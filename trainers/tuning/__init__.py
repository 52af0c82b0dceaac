"""Instruction tuning of Spa3-VLM."""
