"""Medical images: chest X-rays read by masked autoencoders, and MONAI bundles."""
