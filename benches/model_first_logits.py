"""From the start of a process to the first logits of a model folder, by transformers: the peer of `benches/model_load.py`.

    python model_first_logits.py MODEL float32|bfloat16|float16 IDS
"""
import sys

import torch
from transformers import AutoModelForCausalLM


def main():
    folder, dtype, ids = sys.argv[1:]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[int(token) for token in ids.split(",")]]), logits_to_keep=1).logits[0, -1].float()
    print(logits.argmax().item(), f"{logits.max().item():.4f}")


if __name__ == "__main__":
    main()
