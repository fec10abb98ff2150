"""Pre-training without labels: masked autoencoders and what distils them."""
