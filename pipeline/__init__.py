"""Stages of the pipeline: decode, encode, commit, answer. No Ray in here."""
