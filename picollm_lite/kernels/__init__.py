"""Pure tensor functions: tensors in, tensors or a NamedTuple out; no files, no logging, no state."""
