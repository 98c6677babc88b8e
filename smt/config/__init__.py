"""What `params/` says: typed, inherited, checked, with errors that name file and line."""
