"""Training loops: each is a generator that yields one record a step."""
