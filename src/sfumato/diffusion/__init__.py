"""The denoising loop and the strategies it is made of."""
