"""Ollama servers as Gleitzeit instances: configured, discovered, managed or static."""
