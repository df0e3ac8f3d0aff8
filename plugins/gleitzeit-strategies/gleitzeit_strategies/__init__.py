"""Balancing strategies: by weight, by measured speed, by key, by loaded model, by tier."""
