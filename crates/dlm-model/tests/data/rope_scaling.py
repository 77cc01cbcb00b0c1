#!/usr/bin/env python3
"""Makes rope_scaling.json and rope_scaling.safetensors beside it: logits of small random models for every kind of rope scaling.

    python3 -m venv VENV && VENV/bin/pip install torch==2.13.0 transformers==5.23.0 && VENV/bin/python rope_scaling.py

Each case has the keys of a config.json in both generations (`old`, `new`), which transformers reads as the same model, and logits of
rows longer and shorter than the length before scaling, causal and bidirectional. Cases of a family share their weights.
"""
import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM

HERE = pathlib.Path(__file__).parent
FAMILIES = {"llama": LlamaForCausalLM, "mistral": MistralForCausalLM, "qwen2": Qwen2ForCausalLM, "qwen3": Qwen3ForCausalLM}
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16, "vocab_size": 50, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "initializer_range": 0.3,
}
SHORT = [1.0, 1.05, 1.1, 1.3, 1.5, 1.7, 2.0, 2.2]
LONG = [1.0, 1.2, 1.9, 2.8, 4.0, 5.5, 7.0, 9.0]
CASES = [
    ("linear", "llama", 64, {"rope_type": "linear", "factor": 4.0}),
    ("dynamic", "llama", 16, {"rope_type": "dynamic", "factor": 3.0}),
    ("yarn", "llama", 64, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
    ("longrope", "llama", 64, {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 16}),
    ("llama3", "llama", 64, {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}),
    ("yarn_mscale", "llama", 64, {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 6.0, "beta_slow": 0.5,
        "mscale": 0.8, "mscale_all_dim": 0.4, "truncate": False,
    }),
    ("yarn_attention_factor", "llama", 64, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "attention_factor": 0.7}),
    # As Qwen's model cards say to write it: the length stays that before scaling.
    ("yarn", "qwen2", 16, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
    ("yarn", "qwen3", 16, {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 16}),
    ("dynamic", "qwen2", 16, {"rope_type": "dynamic", "factor": 4.0}),
    ("longrope_factors", "qwen2", 64, {
        "rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 16,
        "factor": 2.0, "attention_factor": 1.4,
    }),
    ("yarn", "mistral", 64, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
    ("linear", "mistral", 64, {"rope_type": "linear", "factor": 2.5}),
]
THETA = 1000.0


def logits(model, ids, visibility):
    # A mask of four dimensions is taken as it is: full attention, both ways.
    mask = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool) if visibility == "bidir" else None
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


def main():
    torch.set_num_threads(1)
    tensors, cases = {}, []
    generator = torch.Generator().manual_seed(7)
    rows = {"long": torch.randint(50, (1, 40), generator=generator), "short": torch.randint(50, (1, 12), generator=generator)}
    tensors |= {f"ids.{name}": ids for name, ids in rows.items()}
    weights = {}
    for name, family, length, scaling in CASES:
        model_class = FAMILIES[family]
        names = {"architectures": [model_class.__name__], "model_type": model_class.config_class.model_type}
        common = {**names, **SIZES, "max_position_embeddings": length}
        if family == "mistral":
            common["sliding_window"] = None
        new = {**common, "rope_parameters": {**scaling, "rope_theta": THETA}}
        inner = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
        old = {**common, "rope_theta": THETA, "rope_scaling": inner}
        models = {}
        for generation, config in [("old", old), ("new", new)]:
            torch.manual_seed(len(family))
            config = model_class.config_class.from_dict(json.loads(json.dumps(config)))
            config._attn_implementation = "sdpa"
            models[generation] = model_class(config).eval()
        if family not in weights:
            state = models["new"].state_dict()
            weights[family] = {key: value.bfloat16() for key, value in state.items()}
            tensors |= {f"{family}.{key}": value.clone() for key, value in weights[family].items()}
        for model in models.values():
            model.load_state_dict({key: value.float() for key, value in weights[family].items()})
        for which, ids in rows.items():
            for visibility in ["causal", "bidir"]:
                found = {generation: logits(model, ids, visibility) for generation, model in models.items()}
                assert torch.equal(found["old"], found["new"]), name
                tensors[f"logits.{family}.{name}.{which}.{visibility}"] = found["new"][0].contiguous()
        cases.append({"name": name, "family": family, "old": old, "new": new})
    (HERE / "rope_scaling.json").write_text(json.dumps({"cases": cases}, indent=1) + "\n")
    save_file(tensors, HERE / "rope_scaling.safetensors")


if __name__ == "__main__":
    main()
