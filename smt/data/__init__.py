"""From disk to batch: readers, samplers, keyed randomness, augmentation, workers."""
