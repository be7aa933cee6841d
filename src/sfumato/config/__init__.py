"""Configuration: frozen shapes, validated, and the files they come from."""
