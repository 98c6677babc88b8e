"""A run on disk: its paths, records, journal, provenance, lock and heartbeat."""
