"""The decoding loop, its backend on upstream's caches, and what a judged call returns."""
