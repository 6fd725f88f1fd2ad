"""What may be kept instead of computed again: KV blocks, and prompts that begin alike."""
