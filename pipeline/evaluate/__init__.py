"""Scores of answers: metrics of the data sets, and a judge."""
