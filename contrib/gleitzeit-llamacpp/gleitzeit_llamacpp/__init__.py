"""An embedded LLM for Gleitzeit: llama.cpp servers as child processes."""
