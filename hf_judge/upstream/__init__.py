"""Holds the seam: the only package that touches what transformers and peft do not promise to keep.

Private names, names that moved, submodules that are no public API, and questions about versions stand here, each once,
with the versions in which it was read. `tests/test_upstream.py` has a test for each, named after the fact: on a new
release, the failing tests are the list of what moved.
"""
