"""The network in plain PyTorch: encode and denoise on one device, no I/O."""
