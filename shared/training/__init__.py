"""Running tasks: optimisers, order of batches, checkpoints, resume."""
