"""The HTTP gateway of Gleitzeit, with the Ollama and OpenAI client APIs."""
