"""Other guards around the same model that answers at once: each in an environment of its own."""
