"""Pre-training without labels: masked autoencoders of ViTs and CNNs."""
