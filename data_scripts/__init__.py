"""Whatever makes or reads data; knows no model."""
