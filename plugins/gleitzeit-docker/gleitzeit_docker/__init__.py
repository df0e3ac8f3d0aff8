"""Containers for Gleitzeit: pooled, limited, reset and cleaned up after, on one or several Docker Engines."""
