"""References, fixed cases and known mistakes of the exercises, one module a notebook."""
