"""Training: noise, losses, optimiser, deterministic data, and runs that survive a kill."""
