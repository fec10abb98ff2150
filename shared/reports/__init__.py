"""Reports that users look at."""
