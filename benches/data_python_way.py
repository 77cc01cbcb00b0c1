"""The Python way to prepare rows for training: `datasets` and `tokenizers`, two processes. Started by data_prepare.py.

    python data_python_way.py TOKENIZER FILE OUTPUT.parquet SEQUENCE_LEN

Written as their documentation does it: JSON Lines loaded, texts encoded by `map` in batches, documents of a batch packed into
rows by first fit, the rows written as Parquet. `datasets` keeps what each step makes in files, and so uses little memory.
"""
import json
import os
import pathlib
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the two processes are the parallelism

import datasets  # noqa: E402
import tokenizers  # noqa: E402


def main(folder, file, output, sequence_len):
    folder = pathlib.Path(folder)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    eos = json.loads((folder / "tokenizer_config.json").read_text())["eos_token"]
    eos_id = tokenizer.token_to_id(eos if isinstance(eos, str) else eos["content"])

    def encode(batch):
        if "text" in batch:
            texts = batch["text"]
        else:
            texts = [f"{instruction}\n{output}" for instruction, output in zip(batch["instruction"], batch["output"])]
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return {"input_ids": [encoding.ids + [eos_id] for encoding in encodings]}

    def pack(batch):
        bins, rooms = [], []
        for ids in batch["input_ids"]:
            for start in range(0, len(ids), sequence_len):
                piece = ids[start : start + sequence_len]
                for index, room in enumerate(rooms):
                    if room >= len(piece):
                        break
                else:
                    index = len(bins)
                    bins.append([])
                    rooms.append(sequence_len)
                bins[index].append(piece)
                rooms[index] -= len(piece)
        rows = {"input_ids": [], "labels": [], "segment_ids": [], "position_ids": []}
        for pieces, room in zip(bins, rooms):
            ids = [token for piece in pieces for token in piece]
            rows["input_ids"].append(ids + [eos_id] * room)
            rows["labels"].append(ids + [-100] * room)
            segments = [number for number, piece in enumerate(pieces, 1) for _ in piece]
            rows["segment_ids"].append(segments + [0] * room)
            positions = [position for piece in pieces for position in range(len(piece))]
            rows["position_ids"].append(positions + list(range(room)))
        return rows

    with tempfile.TemporaryDirectory(dir=pathlib.Path(output).parent) as cache:
        data = datasets.load_dataset("json", data_files=file, split="train", cache_dir=cache)
        data = data.map(encode, batched=True, num_proc=2, remove_columns=data.column_names)
        data = data.map(pack, batched=True, num_proc=2, remove_columns=data.column_names)
        data.to_parquet(output)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
