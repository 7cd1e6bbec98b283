"""From millions of files to shards of results: `fdftnet predict --parquet`."""
