"""Questions, references and conversations, read from the forms that data sets have."""
