"""Data sets packed in tar shards of WebDataset's layout, with an index for random access."""
