"""The embedded tiny pair: a trained target, draft, tokenizer and judge head that run anywhere, offline.

Their world is `world`; how they were made and what they reach stands in the card, README.md beside this file.
"""

from hf_judge.tiny.pair import HOME, TinyPair, load_pair

__all__ = ["HOME", "TinyPair", "load_pair"]
