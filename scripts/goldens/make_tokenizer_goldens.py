#!/usr/bin/env python3
"""Makes tests/model_io/golden/: small tokenizers of the usual families, texts, and the tokenizers library's output for
them. Needs that library (pip install tokenizers); the tests only read the files.

texts.json is the list of texts. Each other file holds a tokenizer.json and variants of it. A variant replaces components
(of the model: keys). For each text there is [ids] or [ids, text]: the ids, and the text that they add after other text if
that differs from the text itself. Variants with the decoder of the plain tokenizer have only the ids.
"""

import json
import random
import sys
from collections import Counter
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "model_io" / "golden"

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 1984, isn't it? They've said we'll see 12,345 of them.",
    "def add(a, b):\n    return a + b\n\nfor (int i = 0; i < 10; ++i) { x[i] += 2.5e-3; }\n",
    "Größe, naïve café, garçon, señor, Übermut, œuvre. Ça va bien, merci. Żółć, dvě, tři.",
    "Привет, мир! Это простая строка. Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया।",
    "你好，世界。今天天气很好。こんにちは世界、これはテストです。안녕하세요 세계.",
    "the cat sat on the mat and the dog ran after the cat while the rain fell on the town",
    "😀 🙂 👍 🌳 — “quotes” … • – ©®™ 10€ 5£",
]

TEXTS = [
    "", "a", " ", "  ", "\n", "Hello world", " Hello world ", "  two  spaces   three    four     ",
    "the cat sat on the mat", "It's they've WE'LL I'M he'd isn't 'tis 'S 'ſ ʼs",
    "0 12 345 6789 1234567890 3.14 ½ Ⅷ ٣٤٥ 1,000,000 x2y3z",
    "line one\nline two\r\nline three\r\rfour\n\n\n\nfive",
    "tabs\tand\t\tmore \t mixed \n\t indent\n        eight", "trailing spaces    \n   leading\n\n  \n end  ",
    "def f(x):\n\treturn {'a': [1, 2], \"b\": x ** 2} # ok?\n",
    "for(i=0;i<n;i++){a[i]+=b->c::d&&!e||~f%g;}//x\n", "naïve café Größe œuvre Żółć ĞİIı ẞß",
    "cafe\u0301 e\u0301\u0302 n\u0303 A\u030a \u1e9b\u0323 \u0344", "ﬁne ﬂow ① ℌ ｆｕｌｌ ㎏ ½",
    "Привет, мир! Γειά σου ΚΌΣΜΕΣ. שָׁלוֹם עולם مرحبا", "नमस्ते दुनिया। ไทยไม่มีช่องว่าง தமிழ்",
    "你好，世界。今天天气很好！12月3日 日本語", "こんにちは世界、テスト ﾃｽﾄ 안녕하세요", "😀🙂👍🏽 👩‍👩‍👧‍👦 🇩🇪 ☃️ 🌳🌳",
    "a\u200bb\u00a0c\u2003d\u3000e\u0085f\u2028g\ufeffh\u1680i\u180ej",
    "zero\u0000byte \x01\x1b\x7f \x1c\x1d", "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|> c<|endoftext|><|endoftext|>",
    "<s>x</s> <unk> <|im_start|>user\nhi<|im_end|>\n", "<|endoftext|",
    "<tool> <tool>x</tool>  <tools> <to ol> mytool tool my-tool tool_ tool", "x <mask> y<mask>z  <mask>",
    "left <left> <left>\n<right>  right<right>x ", "DAY Day day DAYS", "<0x0A> <0x41> <0xZZ> <0xe9>",
    "▁ ▁▁ a▁b ▁the Ġ ĠĠ aĠb Ċ Ã©", "\ufffd \ufffdx\ufffd",
    "$100 50% #tag @user a_b __init__ C++ #!/bin/sh ~/x http://a.b/c?d=e&f=g",
    "!!! ??? ... --- === ***bold*** «q» „q“ —–- ¡¿",
    "CamelCaseWords HTTPServer aB cD XMLHttpRequest iPhone ÄÖÜäöü ǅ", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "the the the thethethe", "\n \n  \n", " \r\n \r\n", "A\u0301\u0301\u0301\u0301", "𝕳𝖊𝖑𝖑𝖔 𐍈 𠀋 𓀀", "ǆ ﷺ ĳ ŉ",
    "x" + " " * 37 + "y", "…—“‘’”…", "1a2b 3 c4 ५६७ 一二三 ²³",
]

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN = LLAMA3.replace("{1,3}", "")
CL100K = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
          r"|\s+(?!\S)|\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"]
DEEPSEEK3 = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
             "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
             "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
REPLACE_SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
SPACES = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
FALLBACK, FUSE = {"type": "ByteFallback"}, {"type": "Fuse"}


def split(pattern: str, behavior: str = "Isolated", invert: bool = False, kind: str = "Regex") -> dict:
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def cuts(*steps: dict) -> dict:
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)}}


def metaspace(scheme: str, cut: bool) -> dict:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": cut}


def added(first: int, *tokens: tuple[str, dict]) -> list[dict]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return [{"id": first + i, "content": content, **plain, **flags} for i, (content, flags) in enumerate(tokens)]


def changed(base: dict, changes: dict) -> dict:
    """The file with other components; of the model only the given keys change."""
    return base | changes | {"model": base["model"] | changes.get("model", {})}


def train(tokenizer: Tokenizer, vocab_size: int, **options) -> dict:
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **options)
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return json.loads(tokenizer.to_str())


def byte_level(pre_tokenizer, special: str) -> dict:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    # With the whole alphabet, so that there is a token for every byte.
    return train(tokenizer, 420, special_tokens=[special], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def byte_fallback(normalizer, pre_tokenizer, decoder: dict) -> dict:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # The library would choose differently among equally frequent characters each time.
    counts = Counter("▁" + "".join(CORPUS).replace(" ", ""))
    alphabet = sorted(counts, key=lambda c: (c != "▁", -counts[c], c))[:90]
    made = train(tokenizer, 560, special_tokens=special, initial_alphabet=alphabet, limit_alphabet=90)
    made["added_tokens"] = made["added_tokens"][:3]  # bytes are tokens of the model, not of the text
    made["decoder"] = decoder
    return made


def families() -> dict[str, tuple[dict, dict[str, dict]]]:
    """For each file: its tokenizer and the changes that make the variants."""
    gpt2 = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), "<|endoftext|>")
    for key in ("type", "byte_fallback", "ignore_merges"):  # the format of early versions
        del gpt2["model"][key]
    gpt2["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    gpt2["model"]["merges"] = [" ".join(merge) for merge in gpt2["model"]["merges"]]
    size = len(gpt2["model"]["vocab"])
    choosy = added(0, ("<|endoftext|>", {})) + added(
        size, ("<tool>", {"special": False}), ("<tools>", {"special": False}), ("</tool>", {"special": False}),
        ("tool", {"special": False, "single_word": True}), ("<mask>", {"lstrip": True}),
        ("<left>", {"lstrip": True, "special": False}), ("<right>", {"rstrip": True, "special": False}),
        ("日本", {"special": False}), ("    ", {"special": False}))

    def step(*patterns: str) -> pre_tokenizers.PreTokenizer:
        return pre_tokenizers.Sequence(
            [*(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns),
             pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    llama3 = byte_level(step(LLAMA3), "<|endoftext|>")
    llama3["model"]["ignore_merges"] = True
    llama3["model"]["vocab"]["Ġlazy"] = len(llama3["model"]["vocab"])  # no merge leads here
    llama3["model"]["vocab"]["thethethe"] = len(llama3["model"]["vocab"])
    qwen = byte_level(step(QWEN), "<|endoftext|>")
    qwen["normalizer"] = {"type": "NFC"}
    qwen_size = len(qwen["model"]["vocab"])
    qwen["added_tokens"] += added(qwen_size, ("<|im_start|>", {}), ("<|im_end|>", {}), ("<tool>", {"special": False}))
    folded = qwen["added_tokens"] + added(qwen_size + 3, ("DAY", {"special": False, "normalized": True}),
                                          ("ﬁ", {"special": False, "normalized": True}))

    joined = {"type": "Sequence", "decoders": [SPACES, FALLBACK, FUSE]}
    stripped = {"type": "Sequence", "decoders": [SPACES, FALLBACK, FUSE,
                                                 {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    llama2 = byte_fallback(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None, stripped)
    mistral = byte_fallback(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=True), stripped)
    gemma = byte_fallback(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"), joined)
    sp_size = len(llama2["model"]["vocab"])
    eager = llama2["added_tokens"] + added(sp_size, ("<tool>", {"special": False, "normalized": True}),
                                           ("DAY", {"special": False, "normalized": True, "single_word": True}))
    no_bytes = {"byte_fallback": False}

    return {
        "gpt2": (gpt2, {
            "plain": {},
            "prefix_space": {"pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True, "use_regex": True}},
            "added_tokens": {"added_tokens": choosy},
            "digits": cuts({"type": "Digits", "individual_digits": True}, {**BYTE_LEVEL, "use_regex": True}),
        }),
        "llama3": (llama3, {
            "plain": {},
            "cl100k": cuts(split(CL100K, "Removed", True), BYTE_LEVEL),
            "tekken": cuts(split(TEKKEN), BYTE_LEVEL),
            "deepseek": cuts(*map(split, DEEPSEEK), {"type": "Digits", "individual_digits": True}, BYTE_LEVEL),
            "deepseek3": cuts(*map(split, DEEPSEEK3), BYTE_LEVEL),
        }),
        "qwen": (qwen, {
            "plain": {},
            "folded": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]},
                       "added_tokens": folded},
            "nfd": {"normalizer": {"type": "NFD"}},
            "nfkd_stripped": {"normalizer": {"type": "Sequence", "normalizers": [
                {"type": "NFKD"}, {"type": "Strip", "strip_left": True, "strip_right": True}]}},
        }),
        "llama2": (llama2, {
            "plain": {},
            "added_tokens": {"added_tokens": eager},
            "unknown": {"model": no_bytes},
            "unknown_apart": {"model": {**no_bytes, "fuse_unk": False}},
            "dropped": {"model": {**no_bytes, "unk_token": None}},
        }),
        "mistral": (mistral, {
            "plain": {},
            "always": {"pre_tokenizer": metaspace("always", False), "decoder": metaspace("always", False)},
            "never": {"pre_tokenizer": metaspace("never", True), "decoder": metaspace("never", True)},
            "words": {"pre_tokenizer": {"type": "Whitespace"}},
            "spaces_removed": {"pre_tokenizer": {"type": "WhitespaceSplit"}},
            "punctuation": {"pre_tokenizer": {"type": "Punctuation", "behavior": "Contiguous"}},
            "digit_runs": {"pre_tokenizer": {"type": "Digits", "individual_digits": False}},
        }),
        "gemma": (gemma, {
            "plain": {},
            "with_next": {"pre_tokenizer": split("▁", "MergedWithNext", kind="String")},
            "with_previous_inverted": {"pre_tokenizer": split("▁", "MergedWithPrevious", True, "String")},
            "contiguous": {"pre_tokenizer": split("[a-m]", "Contiguous")},
            "look_ahead": {"pre_tokenizer": split(r"(?=(\d{3})+(?!\d))|(?<=e)(?=\w)")},
            "spaces_squeezed": {"normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}, REPLACE_SPACE]}},
        }),
    }


def case(tokenizer: Tokenizer, text: str, decode: bool) -> list:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if not decode:
        return ids
    anchor = [tokenizer.token_to_id("a")]
    before, after = tokenizer.decode(anchor), tokenizer.decode(anchor + ids)
    if not after.startswith(before):
        raise ValueError(f"{after!r} does not begin with {before!r}")
    decoded = after[len(before):]
    return [ids] if decoded == text else [ids, decoded]


def random_texts(count: int) -> list[str]:
    rng = random.Random(5)
    kinds = ["abcde XYZ", " \t\r\n\u00a0\u3000", "0123456789٣५", ".,;:!?'\"-_$+",
             "äéñöÅǅßİı", "жΣςאبन्", "你好世界こ한", "😀👍🏽\u200d\ufe0f", "\u0301\u0323"]
    return ["".join(rng.choice(rng.choice(kinds)) for _ in range(rng.randrange(5, 40))) for _ in range(count)]


def main() -> None:
    texts = TEXTS + random_texts(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
    GOLDEN.mkdir(exist_ok=True)

    def write(name: str, value) -> None:
        (GOLDEN / f"{name}.json").write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")

    write("texts", texts)
    for name, (base, changes) in families().items():
        variants = []
        for variant, change in changes.items():
            tokenizer = Tokenizer.from_str(json.dumps(changed(base, change)))
            decode = variant == "plain" or "decoder" in change or "added_tokens" in change
            variants.append({"name": variant, "changes": change, "decodes": decode,
                             "cases": [case(tokenizer, text, decode) for text in texts]})
        write(name, {"tokenizer": base, "variants": variants})


if __name__ == "__main__":
    main()
