"""Text given out token by token against the whole decoding, over the kinds of tokenizers that there are."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_judge.evaluation.detokenizer import Detokenizer, pieces

BYTES = [f"<0x{i:02X}>" for i in range(256)]
SPECIAL = ["<unk>", "<s>", "</s>"]


def fast(tokenizer, **options):
    """With special tokens, and added ones: a special one, and a plain one that eats the blank before it."""
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("<|tool|>", lstrip=True, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **options
    )


def byte_level():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["Ġthe", "Ġcafé".replace("é", "Ã©"), "ing", "Ġ'"]
    bpe = Tokenizer(models.BPE({p: i for i, p in enumerate([*SPECIAL, *alphabet, *words])}, [], ignore_merges=True))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return fast(bpe)


def sentencepiece(scheme="first", strip=1):
    """As Llama 2's: a blank is part of the word behind it, rare characters are bytes."""
    words = ["▁the", "▁blue", "▁", "▁▁", "ing", ".", "é", "\N{REPLACEMENT CHARACTER}", "\n", "'", "▁'"]
    vocab = {p: i for i, p in enumerate([*SPECIAL, *BYTES, *words])}
    bpe = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, ignore_merges=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    bpe.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", strip, 0)] if strip else [])])
    return fast(bpe)


def unigram():
    """As T5's and Gemma's older ones: Metaspace alone."""
    words = [*SPECIAL, "▁the", "▁blue", "▁", "ing", ".", "é"]
    tokenizer = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=0))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return fast(tokenizer)


def word_piece(*, clean_up):
    words = [*SPECIAL, "the", "don", "'", "t", "s", "n", "##'", "##t", "n't", "'s", ".", "##ing", "é", "!", ","]
    tokenizer = Tokenizer(models.WordPiece({p: i for i, p in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=clean_up)
    return fast(tokenizer, clean_up_tokenization_spaces=clean_up)


def suffixed():
    """As GPT-1's: the end of a word is marked, and the last word's mark is no blank."""
    words = [*SPECIAL, "the</w>", "blue</w>", "in", "g</w>", ".</w>"]
    bpe = Tokenizer(models.BPE({p: i for i, p in enumerate(words)}, [], end_of_word_suffix="</w>", unk_token="<unk>"))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.BertPreTokenizer(), decoders.BPEDecoder(suffix="</w>")
    return fast(bpe)


TOKENIZERS = {
    "byte_level": byte_level(),
    "sentencepiece": sentencepiece(),
    "sentencepiece, never a blank in front": sentencepiece("never", 0),
    "unigram": unigram(),
    "word_piece": word_piece(clean_up=False),
    "word_piece, cleaned up": word_piece(clean_up=True),
    "suffixed": suffixed(),
}


def ids(name):
    """Any tokens, bytes and all, one beyond the vocabulary too (rows of a padded LM head)."""
    return st.lists(st.integers(0, len(TOKENIZERS[name])), max_size=24)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("skip", [True, False])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_add_up_to_the_whole(name, skip, data):
    tokenizer, tokens = TOKENIZERS[name], data.draw(ids(name))
    texts = pieces(tokenizer, tokens, skip_special_tokens=skip)
    assert len(texts) == len(tokens)
    assert "".join(texts) == tokenizer.decode(tokens, skip_special_tokens=skip)


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=12), cut=st.integers(0, 40))
@example(text="€ ok", cut=2)
@example(text="né\N{REPLACEMENT CHARACTER}", cut=40)
def test_characters_in_bytes_cut_anywhere(text, cut):
    """Any text in byte tokens, cut in the middle of a character, between words of the vocabulary."""
    tokenizer = TOKENIZERS["sentencepiece"]
    of_bytes = tokenizer.convert_tokens_to_ids([f"<0x{b:02X}>" for b in text.encode()][:cut])
    word = tokenizer.convert_tokens_to_ids("▁blue")
    for tokens in ([word, *of_bytes], [*of_bytes, word], [word, *of_bytes, word, *of_bytes]):
        assert "".join(pieces(tokenizer, tokens)) == tokenizer.decode(tokens)


def test_text_does_not_wait_longer_than_it_must():
    """A word is there with its token; a character with its last byte in byte-level, with what follows in a run."""
    tokenizer = TOKENIZERS["byte_level"]
    stream = Detokenizer(tokenizer)
    tokens = tokenizer.convert_tokens_to_ids(["Ġthe", "Ã", "©", "ing"])
    assert [stream.put(token) for token in tokens] == [[" the"], [], ["", "é"], ["ing"]]
    assert stream.end() == []
    tokenizer = TOKENIZERS["sentencepiece"]
    stream = Detokenizer(tokenizer)
    tokens = tokenizer.convert_tokens_to_ids(["▁the", "<0xC3>", "<0xA9>", "▁blue", "<0xE2>"])
    assert [stream.put(token) for token in tokens] == [["the"], [], [], ["", "é", " blue"], []]
    assert stream.end() == ["\N{REPLACEMENT CHARACTER}"]


def test_a_skipped_token_does_not_end_a_run_of_bytes():
    tokenizer = TOKENIZERS["sentencepiece"]
    tokens = tokenizer.convert_tokens_to_ids(["▁the", "<0xC3>", "</s>", "<0xA9>", "▁blue"])
    texts = pieces(tokenizer, tokens, skip_special_tokens=True)
    assert "".join(texts) == tokenizer.decode(tokens, skip_special_tokens=True) == "theé blue"
