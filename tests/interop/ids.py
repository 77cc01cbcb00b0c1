#!/usr/bin/env python3
"""Compare the token ids of every text in JSON Lines files with those of Python's `tokenizers`, by checksum.

    python3 tests/interop/ids.py TOKENIZER FILE...

TOKENIZER is a folder with a tokenizer.json, for example from `hf download HuggingFaceTB/SmolLM2-135M tokenizer.json
tokenizer_config.json --local-dir models/smollm2`. Every string of every row is a text. Special tokens that a text spells are
text to both (`encode_special_tokens`). The environment for Python is made from PyPI.
"""
import hashlib
import json
import pathlib
import subprocess
import sys

CLONE = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CLONE / "scripts"))
import python_peer  # noqa: E402  (scripts/python_peer.py)


def theirs(tokenizer, files):
    """What Python's library says of each file; runs in the environment."""
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(pathlib.Path(tokenizer) / "tokenizer.json"))
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = True
    for file in files:
        texts = []
        with open(file, encoding="utf-8", newline="\n") as lines:
            for line in lines:
                texts += [value for value in json.loads(line).values() if isinstance(value, str)]
        digest, tokens = hashlib.sha256(), 0
        for start in range(0, len(texts), 1000):
            for encoding in library.encode_batch(texts[start : start + 1000], add_special_tokens=False):
                tokens += len(encoding.ids)
                digest.update(b"".join(number.to_bytes(4, "little") for number in [len(encoding.ids), *encoding.ids]))
        print(f"{pathlib.Path(file).name}\t{len(texts)} texts\t{tokens} tokens\tsha256 {digest.hexdigest()}", flush=True)


def main(tokenizer, files):
    ours = ["cargo", "run", "--quiet", "--release", "--package", "dlm-tokenizer", "--example", "encode_rows", "--", tokenizer, *files]
    ours = subprocess.run(ours, stdout=subprocess.PIPE, text=True, check=True, cwd=CLONE).stdout.splitlines()
    peer = [python_peer.environment("tokenizers"), __file__, "--theirs", tokenizer, *files]
    peer = subprocess.run(peer, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    different = 0
    for our, their in zip(ours, peer, strict=True):
        our, elapsed = our.rsplit("\t", 1)
        print(f"{'equal' if our == their else 'DIFFERENT'}\t{our}\tin {elapsed} by dlm")
        if our != their:
            different += 1
            print(f"\ttokenizers:\t{their}")
    sys.exit(different)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["--theirs"]:
        theirs(arguments[1], arguments[2:])
    elif len(arguments) < 2:
        sys.exit(__doc__)
    else:
        tokenizer, *files = (str(pathlib.Path(argument).resolve()) for argument in arguments)
        main(tokenizer, files)
