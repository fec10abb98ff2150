"""One Lightning module per kind of task."""
