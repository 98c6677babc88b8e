"""Final weights, model cards and results, packed to be published."""
