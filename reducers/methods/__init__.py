"""The methods, one module each; no module imports another."""
