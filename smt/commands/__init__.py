"""One module a command of `smt`."""
