"""Everything that makes or reads data. No module here imports model code."""
