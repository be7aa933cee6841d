"""The live canvas: a view of the text as it comes out of the noise."""
