#!/usr/bin/env python3
"""A vocabulary that SentencePiece learnt from the licence of this repository, and the ids it gives some texts: spm_vocabulary.json.

    python3 -m venv VENV && VENV/bin/pip install sentencepiece==0.2.3 && VENV/bin/python spm_vocabulary.py

Trained as Llama's was: BPE, bytes for what is unknown, digits by themselves, no change of the text, a space in front.
"""
import io
import json
import pathlib

import sentencepiece

HERE = pathlib.Path(__file__).resolve().parent
LICENCE = HERE.parents[3] / "LICENSE-APACHE"
TEXTS = [
    "Licensed under the Apache License",
    "the the  the   the",
    " leading and trailing ",
    "   ",
    "",
    "contributions, CONTRIBUTIONS and 2024 numbers: 3.14159",
    "line\nbreaks\r\n\tand tabs",
    "Grüße aus Köln, 東京 and 🙂!",
    "distribution<tool></tool>",  # no text behind: there a tokenizer.json, as llama.cpp, begins with a space once more
    "a" * 50,
    "internationalization of redistributions",
    "x▁y",
]

model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(LICENCE.read_text().splitlines()),
    model_writer=model,
    model_type="bpe",
    vocab_size=600,
    byte_fallback=True,
    split_digits=True,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    user_defined_symbols=["<tool>", "</tool>"],
    num_threads=1,
    minloglevel=2,
)
pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def kind(i):
    """What GGUF says a token is."""
    if pieces.is_unknown(i):
        return 2
    if pieces.is_control(i):
        return 3
    if pieces.is_byte(i):
        return 6
    return 4 if pieces.id_to_piece(i) in ("<tool>", "</tool>") else 1


ids = range(pieces.get_piece_size())
written = {
    "tokens": [pieces.id_to_piece(i) for i in ids],
    "scores": [pieces.get_score(i) for i in ids],
    "kinds": [kind(i) for i in ids],
    "cases": [{"text": text, "ids": pieces.encode(text), "decoded": pieces.decode(pieces.encode(text))} for text in TEXTS],
}
(HERE / "spm_vocabulary.json").write_text(json.dumps(written, ensure_ascii=False) + "\n")
