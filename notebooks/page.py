"""A page of documentation as a notebook: its Rust blocks are the cells, and a text block after one is what the cell says."""

import re

import nbformat

BLOCK = re.compile(r"^```rust,ignore\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def read(path):
    """A notebook. A cell that is to end in an error is tagged so, and each has the lines that it is to say in `says`."""
    book = nbformat.v4.new_notebook()
    for source, said in BLOCK.findall(path.read_text(encoding="utf-8")):
        tags = ["raises-exception"] if said.startswith("Error: ") else []
        metadata = {"tags": tags, "says": said.splitlines()}
        book.cells.append(nbformat.v4.new_code_cell(source.rstrip("\n"), metadata=metadata))
    return book


def unsaid(cell, text):
    """The first line that a cell should say and did not say, after the lines before it; None if it said all."""
    place = 0
    for line in cell.metadata.get("says", []):
        found = text.find(line, place)
        if found < 0:
            return line
        place = found + len(line)
    return None
