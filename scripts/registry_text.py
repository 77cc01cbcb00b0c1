#!/usr/bin/env python3
"""Gather English prose for the demo from the sources of this build's own dependencies.

    python3 scripts/registry_text.py OUTPUT.jsonl

Writes one JSON object a line, {"text", "source"}: the Markdown files and the doc comments of the crates in the cargo registry,
without code blocks, licences and changelogs. The order is that of the sorted paths, so that the same crates give the same file.
"""
import json
import os
import pathlib
import re
import sys

REGISTRY = pathlib.Path(os.environ.get("CARGO_HOME") or pathlib.Path.home() / ".cargo") / "registry" / "src"
UNWANTED = re.compile(r"licen[cs]e|copying|changelog|changes|history|authors|third.?party", re.IGNORECASE)
CODE = re.compile(r"^ *```.*?^ *```[^\n]*$|^(?: {4}|\t)[^\n]*$|^\s*\[[^\]\n]+\]:[^\n]*$|<[^>\n]+>", re.MULTILINE | re.DOTALL)
DOC = re.compile(r"(?:^[ \t]*//[/!](?!/).*\n?)+", re.MULTILINE)
MINIMUM = 200  # characters; shorter pieces are mostly headings and signatures


def tidy(text):
    """Plain paragraphs of a Markdown text: no code, links by their words only."""
    text = CODE.sub("", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\[`?([^\]`]*)`?\](?:\[[^\]]*\])?", r"\1", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def documents(path):
    text = path.read_text(encoding="utf-8", errors="ignore")
    if path.suffix == ".md":
        yield tidy(text)
    else:
        for comment in DOC.findall(text):
            yield tidy(re.sub(r"(?m)^[ \t]*//[/!] ?", "", comment))


def main(output):
    seen = set()
    count = size = 0
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "w", encoding="utf-8") as lines:
        for path in sorted(REGISTRY.glob("*/*/**/*")):
            if path.suffix not in (".md", ".rs") or UNWANTED.search(path.name) or not path.is_file():
                continue
            for text in documents(path):
                letters = sum(character.isalpha() or character == " " for character in text)
                if len(text) < MINIMUM or letters < 0.85 * len(text) or text in seen:
                    continue
                seen.add(text)
                source = "/".join(path.relative_to(REGISTRY).parts[1:])
                lines.write(json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n")
                count, size = count + 1, size + len(text)
    if not count:
        sys.exit(f"error: no text under {REGISTRY}\n  help: build dlm first, or name a folder of text files: make demo DATA=FOLDER")
    print(f"{count} documents, {size / 1e6:.1f} MB of text in {output}", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
