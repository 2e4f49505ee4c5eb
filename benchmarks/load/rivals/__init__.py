"""Programs that run the same work in the rivals' environments."""
