"""Write the tokenizers' files into a folder: ``vocabulary.py diffcache/tiny/weights``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import scenes
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers.convert_slow_tokenizer import bytes_to_unicode


def words() -> list[str]:
    """Every word a caption can hold, in lower case and sorted."""
    found = {"and"}
    for count in range(1, 1 + len(scenes.NUMBERS)):
        for texture in scenes.TEXTURES:
            for colour in scenes.COLOURS:
                for shape in scenes.SHAPES:
                    group = scenes.Group(count, texture, colour, shape)
                    found.update(scenes.caption((group,)).lower().split())
    return sorted(found)


def byte_pairs(vocabulary: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's vocabulary and merges: all bytes, and merges that build each word from its left."""
    characters = list(bytes_to_unicode().values())
    tokens = [*characters, *(f"{character}</w>" for character in characters)]
    merges: dict[tuple[str, str], None] = {}
    for word in vocabulary:
        left, *rest = [*word[:-1], f"{word[-1]}</w>"]
        for part in rest:
            merges[left, part] = None
            left += part
            tokens.append(left)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}, list(merges)


def word_level(vocabulary: list[str]) -> Tokenizer:
    """A tokenizer of whole words that ends each text with ``</s>``, as T5's does."""
    tokens = ["<pad>", "</s>", "<unk>", *vocabulary]
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", ids["</s>"])]
    )
    return tokenizer


def main() -> None:
    """Write ``vocab.json``, ``merges.txt`` and ``words.json``."""
    folder = Path(sys.argv[1])
    vocabulary = words()
    ids, merges = byte_pairs(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    word_level(vocabulary).save(str(folder / "words.json"))


if __name__ == "__main__":
    main()
