"""The ragged engine: a batch whose rows have their own lengths, in preallocated caches, with its own drafting loop."""
