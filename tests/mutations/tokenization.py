"""Changes of gptjax/tokenization and gptjax/huggingface."""

from .mutation import mutate

TOKENIZATION = (
    *mutate(
        "gptjax/tokenization/chat.py",
        "test_chat.py",
        # The first answer of a completion is not scored.
        ("number >= scored_from", "number > scored_from"),
        # The end of an answer is not learned.
        ("len(start) + len(text) + 1)", "len(start) + len(text))"),
        # The header of an answer is learned.
        ("first = length + len(start) + context", "first = length + len(start) + 0 * context"),
    ),
    *mutate(
        "gptjax/tokenization/base.py",
        "test_chat.py",
        # A token across the border is context.
        ('border, side="right"))', 'border, side="right")) + (border not in ends)'),
    ),
    *mutate(
        "gptjax/tokenization/library_tokenizer.py",
        "test_library_tokenizer.py",
        # Text can contain special tokens.
        ("encode_special_tokens = not trusted", "encode_special_tokens = False"),
        # A piece of the model stands for a special token.
        ("self._encode(text).ids if wrong else ids", "ids"),
        # A text behind a special token is read as if it were the first.
        ('begin = "" if after is None else', 'begin = "" if True else'),
    ),
    *mutate(
        "gptjax/tokenization/library_decoder.py",
        "test_library_tokenizer.py",
        # Characters are given out that later bytes change.
        (".rstrip(REPLACEMENT)", ""),
    ),
    *mutate(
        "gptjax/tokenization/table_tokenizers.py",
        "test_tokenizer.py test_bpe_trainer.py",
        # Special tokens leave an id free.
        ("self.vocab_size + i for i", "self.vocab_size + 1 + i for i"),
        # Tokenizers with other special tokens are taken for the same.
        ("table, sorted(self.specials.items())]", "table]"),
        # Text can contain special tokens.
        ("disallowed_special=())", 'allowed_special="all")'),
    ),
    *mutate(
        "gptjax/huggingface/architectures/gpt2.py",
        "test_huggingface_gpt2.py",
        # Heads and q, k, v change places.
        ('"D CHK"', '"D HCK"'),
        # Channels and heads change places.
        ('"HK D"', '"KH D"'),
        # An untied head is not transposed.
        ('"head", "V D"', '"head", "D V"'),
    ),
)
