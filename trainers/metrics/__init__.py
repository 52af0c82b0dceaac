"""How answers are scored: one module for each benchmark, with its named protocols."""
