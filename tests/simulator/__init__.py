"""A deterministic simulator of the engine: several workers, a runner and an outside world in virtual time."""
