"""A plugin that needs another core only on another Python, or with an extra."""
