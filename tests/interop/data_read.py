"""Prepared data as Python's libraries read it: the columns are as documented, and the ids are the text."""
import json
import os
import pathlib
import subprocess
import tempfile

import pandas
from datasets import load_dataset
from tokenizers import Tokenizer

DLM = os.environ.get("DLM", "dlm")
TOKENIZER = pathlib.Path(__file__).resolve().parents[1] / "golden/models/llama"
LENGTH = 256
INTEGERS = {"input_ids": "int32", "labels": "int32", "segment_ids": "int32", "position_ids": "int32", "document_ids": "int64", "document_offsets": "int64"}


def prepare(folder, rows, steps):
    """Prepare rows with the binary and give the folder of the result."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    blocks = ['[[source]]\npath = "rows.jsonl"'] + [f"[[step]]\n{step}" for step in steps]
    blocks += [f'[[step]]\npack = {{ sequence_len = {LENGTH} }}', '[output]\npath = "prepared"\nshard_tokens = 1024']
    (folder / "pipeline.toml").write_text("\n".join(blocks))
    subprocess.run([DLM, "data", "prepare", folder / "pipeline.toml"], check=True, stdout=subprocess.DEVNULL)
    return folder / "prepared"


def read(folder):
    """The training rows as `datasets` reads them, which have to be those pandas reads."""
    files = str(folder / "train/*.parquet")
    with tempfile.TemporaryDirectory() as cache:
        dataset = load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
        for name, kind in INTEGERS.items():
            feature = dataset.features[name]
            assert feature.feature.dtype == kind, (name, feature)
        rows = list(dataset)
    frame = pandas.concat(pandas.read_parquet(path) for path in sorted((folder / "train").glob("*.parquet")))
    assert len(frame) == len(rows)
    for name in INTEGERS:
        assert [list(values) for values in frame[name]] == [row[name] for row in rows], name
    return rows


def documents(rows):
    """Ids and labels of each document, put together again from its pieces."""
    pieces = []
    for row in rows:
        assert all(len(row[name]) == LENGTH for name in ["input_ids", "labels", "segment_ids", "position_ids"])
        for number, (document, offset) in enumerate(zip(row["document_ids"], row["document_offsets"]), start=1):
            places = [i for i, segment in enumerate(row["segment_ids"]) if segment == number]
            assert [row["position_ids"][i] for i in places] == list(range(len(places)))
            pieces.append((document, offset, [row["input_ids"][i] for i in places], [row["labels"][i] for i in places]))
        assert all(label == -100 for label, segment in zip(row["labels"], row["segment_ids"]) if segment == 0)
    whole = {}
    for document, offset, ids, labels in sorted(pieces):
        known_ids, known_labels = whole.setdefault(document, ([], []))
        assert offset == len(known_ids)
        known_ids += ids
        known_labels += labels
    return whole


def texts_come_back(folder):
    texts = [f"Row {i}: the tide, la mer, 潮, 🌊 </s> " + "word " * (i * 7 % 90) for i in range(120)]
    rows = read(prepare(folder, [{"text": text} for text in texts], [f'tokenize = {{ tokenizer = "{TOKENIZER}", add_eos = true }}']))
    manifest = json.loads((folder / "prepared/manifest.json").read_text())
    tokenizer = Tokenizer.from_file(str(folder / "prepared/tokenizer/tokenizer.json"))
    found = documents(rows)
    assert len(found) == len(texts) and len(rows) == manifest["train"]["rows"]
    for number, text in enumerate(texts):
        ids, labels = found[number]
        assert ids == labels and ids[-1] == manifest["tokenizer"]["eos_token_id"]
        # The end token stands only at the end: the one that the text spells is text.
        assert ids.count(ids[-1]) == 1
        assert tokenizer.decode(ids) == text, (text, tokenizer.decode(ids))


def answers_are_the_labels(folder):
    rows = [{"instruction": f"Say {i}.", "input": "", "output": f"It is {i}, and {i * i} squared."} for i in range(40)]
    steps = ['chat = { format = "alpaca" }', f'tokenize = {{ tokenizer = "{TOKENIZER}" }}']
    found = documents(read(prepare(folder, rows, steps)))
    tokenizer = Tokenizer.from_file(str(folder / "prepared/tokenizer/tokenizer.json"))
    assert len(found) == len(rows)
    for number, row in enumerate(rows):
        ids, labels = found[number]
        assert all(label in (-100, token) for token, label in zip(ids, labels))
        answer = tokenizer.decode([label for label in labels if label != -100])
        assert answer.strip() == row["output"], answer
        assert row["instruction"] in tokenizer.decode(ids)


for check in [texts_come_back, answers_are_the_labels]:
    with tempfile.TemporaryDirectory() as folder:
        check(pathlib.Path(folder))
