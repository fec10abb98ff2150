"""What people should beat: a linear model on simple statistics of an image."""
