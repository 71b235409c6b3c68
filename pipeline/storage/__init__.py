"""Files on local disk and object storage: conditional writes, retries, Parquet."""
