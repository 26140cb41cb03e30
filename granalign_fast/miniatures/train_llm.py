"""Train the miniature Llama to rewrite queries, simplified and detailed, and to list entities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.language import prompts

from . import batches as packing
from . import language, meaning, queries, scenes, training, wordlevel
from .queries import Query

STEPS, RATE = 1400, 2e-3
QUERIES = 8  # queries of each task in a step

TASKS = (*prompts.SIMPLIFIED, *prompts.DETAILED, prompts.ENTITIES)


def build(seed: int) -> Any:
    """Build an untrained ``LlamaForCausalLM`` of 0.8 million parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    training.seed_torch(seed)
    ids = wordlevel.llm_tokenizer().get_vocab()
    depth, width = 4, 128
    config = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=depth,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_theta=1000.0,
        tie_word_embeddings=True,
        bos_token_id=ids["<|begin_of_text|>"],
        eos_token_id=ids["<|eot_id|>"],
        pad_token_id=ids["<|end_of_text|>"],
    )
    model = LlamaForCausalLM(config)
    training.initialise(
        model,
        depth,
        seed,
        inputs=("embed_tokens.weight",),
        outputs=("o_proj.weight", "down_proj.weight"),
    )
    return model


def sample(rng: np.random.Generator, split: scenes.Split = "train") -> Query:
    """Draw a query about a random scene."""
    spec = meaning.sample_spec(rng, scenes.sample_scene(rng, split))
    return queries.sample_query(rng, spec, scenes.pairs_of(split))


def targets(query: Query) -> tuple[str, ...]:
    """Return the target answer to each of `TASKS`."""
    return (
        *language.simplified(query),
        *language.detailed(query),
        language.entity_list(query),
    )


class Prompts:
    """Token ids of the rewriter's prompts, split into common and particular parts."""

    def __init__(self) -> None:
        self.tokenizer = wordlevel.llm_tokenizer()
        one, other = (self.whole(task, "red") for task in (TASKS[0], TASKS[-1]))
        same = [a == b for a, b in zip(one, other, strict=False)]
        self.root = one[: same.index(False)]
        self.heads = []
        for task in TASKS:
            one, other = self.whole(task, "red"), self.whole(task, "blue")
            same = [a == b for a, b in zip(one, other, strict=True)]
            self.heads.append(one[len(self.root) : same.index(False)])

    def whole(self, task: str, query: str) -> list[int]:
        """Return the token ids of a whole prompt."""
        ids: list[int] = self.tokenizer.apply_chat_template(
            [
                {"role": "system", "content": prompts.SYSTEM},
                {"role": "user", "content": prompts.user_message(task, query)},
            ],
            add_generation_prompt=True,
            return_dict=False,
        )
        return ids

    def segment(self, task: int, query: Query) -> packing.Segment:
        """Return the segment of a query and a task's answer; its row has only the task's head."""
        prefix_length = len(self.root) + len(self.heads[task])
        answer = self.tokenizer.encode(
            f"{targets(query)[task]}<|eot_id|>", add_special_tokens=False
        )
        return packing.Segment(0, self.whole(TASKS[task], query.text)[prefix_length:], answer)


def logits(model: Any, root: list[int], packed: packing.Packed) -> Any:
    """Run transformers' model on packed rows; return the logits of the tokens after the root."""
    import torch

    rows = len(packed.ids)
    before = torch.tensor(root).expand(rows, -1)
    root_positions = torch.arange(len(root)).expand(rows, -1)
    return model(
        input_ids=torch.cat([before, torch.from_numpy(packed.ids)], 1),
        position_ids=torch.cat([root_positions, torch.from_numpy(packed.positions)], 1),
        # `tree` masks attention; a four-dimensional mask keeps transformers from building another.
        attention_mask=torch.zeros(1, 1, 1, 1),
        tree=packing.TreeAttention(packed),
        use_cache=False,
        logits_to_keep=packed.ids.shape[1],
    ).logits


def run(out: Path, seed: int, scale: float = 1.0) -> None:
    """Train and save.

    Args:
        out: folder of the model, created when training is complete.
        seed: seed of everything random.
        scale: factor of the number of steps.
    """
    import torch
    from torch.nn import functional

    model, texts = build(seed), Prompts()
    packing.TreeAttention.install(model.config)
    print(f"llm: {model.num_parameters()} parameters", flush=True)

    def rewrite(step: int) -> tuple[Any, dict[str, float]]:
        rng = np.random.default_rng((seed, 3, step))
        rows = [
            packing.Row([head], [texts.segment(task, sample(rng)) for _ in range(QUERIES)])
            for task, head in enumerate(texts.heads)
        ]
        packed = packing.pack(rows, root=len(texts.root), first=len(texts.root))
        on = torch.from_numpy(packed.weights) > 0
        logits_of_rows, targets = (
            logits(model, texts.root, packed),
            torch.from_numpy(packed.targets),
        )
        each = [
            functional.cross_entropy(logits_of_rows[i][on[i]], targets[i][on[i]])
            for i in range(len(rows))
        ]
        total = torch.stack(each).mean()
        return total, {
            "simplified": each[0].item(),
            "detailed": each[3].item(),
            "entities": each[6].item(),
        }

    training.train(
        "llm",
        {"model": model},
        list(model.named_parameters()),
        rewrite,
        steps=round(STEPS * scale),
        rate=RATE,
        checkpoint=out.with_suffix(".checkpoint"),
    )
    model.config._attn_implementation = "sdpa"
    training.save(out, model, texts.tokenizer)
