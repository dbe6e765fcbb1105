"""Load the embedded tiny pair: a trained target, draft, tokenizer and judge head that run anywhere, offline.

They were trained on the stories of `hf_judge.tiny.world`; README.md beside this file says how, and what they reach.
"""

from hf_judge.tiny.pair import HOME, TinyPair, load_pair

__all__ = ["HOME", "TinyPair", "load_pair"]
