"""Compositions of two methods."""
