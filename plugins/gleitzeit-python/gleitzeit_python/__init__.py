"""The protocol `python`, and the runner that carries it out in containers and processes."""
