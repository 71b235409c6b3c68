"""Tables of any common form as rows: Parquet, CSV, JSON, JSON Lines."""
