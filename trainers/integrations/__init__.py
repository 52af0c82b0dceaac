"""Ways in from outside: the terminal, lmms-eval, Hugging Face's evaluate."""
