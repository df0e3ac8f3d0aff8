"""The llm protocol of Gleitzeit and its dialects, ollama and openai."""
