"""Runs batches whose rows have their own lengths, in preallocated caches, with its own drafting loop."""
