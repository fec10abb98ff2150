"""Low-light enhancement by Troublemaker Learning (TML, arXiv 2402.04584)."""
