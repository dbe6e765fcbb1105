"""The ragged engine: a batch whose rows have lengths of their own, in preallocated caches, with its own drafting loop."""
