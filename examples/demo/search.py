"""Semantic search with a compiled sentence encoder: needs numpy, tokenizers and `plait[runtime]`.

    python search.py model.plait tokenizer.json embeddings.npz

Ranks the sentences by the cosine of their embeddings with the query's, and stores the embeddings so
that they can be compared with PyTorch's.
"""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TOKENS = 32  # the length that the encoder is compiled for

QUERY = "How do I keep my bread from going stale?"
SENTENCES = (
    "Wrap a loaf in linen and it stays fresh for days.",
    "Stale rolls come back to life in a hot oven with a little water.",
    "Sourdough keeps longer than loaves made with yeast.",
    "Freeze what you will not eat by tomorrow, already sliced.",
    "The bakery on the corner opens at six in the morning.",
    "Knead the dough until it no longer sticks to the table.",
    "A tram line connects the harbour with the old town.",
    "The cat has been asleep on the warm oven all afternoon.",
    "Our train was late because of snow on the tracks.",
    "Compilers fuse neighbouring loops to save memory traffic.",
    "She plays the cello in the city's youth orchestra.",
    "Tomatoes need six hours of sun and regular watering.",
)


def tokenize(tokenizer_file: Path) -> list[tuple[NDArray[np.int64], ...]]:
    """Ids, mask and segments, int64[1, TOKENS] each, of the query and then of every sentence."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    rows = tokenizer.encode_batch([QUERY, *SENTENCES])
    fields = ("ids", "attention_mask", "type_ids")
    return [tuple(np.array([getattr(row, f)], np.int64) for f in fields) for row in rows]


def rank(embeddings: NDArray[np.float32]) -> list[tuple[float, str]]:
    """Sentences with their cosine to the query, best first; row 0 of `embeddings` is the query."""
    scores = embeddings[1:] @ embeddings[0]
    return sorted(zip(scores.tolist(), SENTENCES, strict=True), reverse=True)


def main(artifact: Path, tokenizer_file: Path, result: Path) -> None:
    import plait

    start = time.perf_counter()
    encode = plait.load(artifact)
    loaded = time.perf_counter()
    rows = [encode(*inputs)[1][0] for inputs in tokenize(tokenizer_file)]
    embeddings = np.stack(rows)

    print(f"torch installed here: {'yes' if find_spec('torch') else 'no'}")
    print(f"{artifact.name} loaded in {(loaded - start) * 1e3:.0f} ms\n\n  query: {QUERY}\n")
    for score, sentence in rank(embeddings):
        print(f"  {score:6.3f}  {sentence}")
    np.savez(result, embeddings=embeddings)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
