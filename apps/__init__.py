"""Applications of one system each, and `main.py`, the umbrella command."""
