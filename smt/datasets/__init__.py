"""What lies on disk before a training: scanned, counted, checked, listed in a manifest."""
