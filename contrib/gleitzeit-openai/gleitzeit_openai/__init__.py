"""Any OpenAI-compatible server as a Gleitzeit instance."""
