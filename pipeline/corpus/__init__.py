"""The videos of a corpus: listing them, fetching them, cutting them into segments."""
