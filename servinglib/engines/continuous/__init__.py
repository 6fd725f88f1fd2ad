"""Our own engine: continuous batching over a paged cache of keys and values."""
