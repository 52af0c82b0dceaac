"""Ways in from outside: the terminal, OpenAI's chat API, lmms-eval, Hugging Face's evaluate."""
