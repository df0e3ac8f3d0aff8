"""Ollama servers as Gleitzeit instances: configured, discovered or static."""
