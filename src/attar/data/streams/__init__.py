"""Labelled images that stay on the disk: Arrow, Parquet and WebDataset shards behind the face of `Images`."""
