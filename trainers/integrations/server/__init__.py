"""An OpenAI-compatible server for Spa3-VLM."""
