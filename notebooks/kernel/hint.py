#!/usr/bin/env python3
"""Says why a cell was refused whose code is right.

    hint.py RUSTC FLAG...   in the folder of a kernel

A notebook keeps a variable from cell to cell, for which evcxr must write down its type. Where it cannot, it refuses the
whole cell. cargo.sh then calls this program: it asks the compiler what the variables are, and prints an error in the
compiler's format, which evcxr shows in place of its own.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

SOURCE = Path("src/lib.rs")
KEPT = re.compile(r"^evcxr_variable_store\((\w+)\);$", re.MULTILINE)
TYPE = re.compile(r"this expression has type `(.*)`")
PAGE = "docs/rust-in-a-notebook.md"
NOTHING = "so nothing in this cell was run, and no variable of it exists"


def types(source, compiler):
    """The types of the variables that a cell defines, as the compiler names them."""
    asked = SOURCE.with_name("asked.rs")
    asked.write_text(KEPT.sub(r"let () = \1;", source), encoding="utf-8")
    command = [*compiler, "--emit=metadata", "--out-dir", "asked", str(asked)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    lines, found = asked.read_text(encoding="utf-8").splitlines(), {}
    for line in answer.splitlines():
        try:
            message = json.loads(line)
        except ValueError:
            continue
        for span in message.get("spans", []):
            name = re.match(r"let \(\) = (\w+);$", lines[span["line_start"] - 1])
            known = TYPE.match(span["label"] or "")
            if name and known:
                found[name[1]] = known[1]
    return found


def error(source, name, text):
    """The compiler's message for an error where the variable `name` is defined."""
    message = {"message": text, "code": None, "level": "error", "spans": [], "children": [], "rendered": text}
    for number, line in enumerate(source.splitlines(), 1):
        place = re.search(rf"\blet\b[^=]*?\b({re.escape(name)})\b", line)
        if place:
            start, end = (len(line[: place.start(1)]) + 1, len(line[: place.end(1)]) + 1)
            where = {"line_start": number, "line_end": number, "column_start": start, "column_end": end}
            message["spans"] = [{"file_name": str(SOURCE), **where, "is_primary": True, "label": "this variable", "text": [], "expansion": None}]
    return {"reason": "compiler-message", "message": message}


def hints(source, found):
    """An error for each closure; if there is none, one for each variable without a type of its own."""
    closures = [name for name, known in found.items() if "{closure@" in known]
    for name in closures:
        what = "is a closure" if found[name].startswith("{closure@") else "has a closure in its type"
        yield error(
            source,
            name,
            f"`{name}` {what}, whose type has no name that a notebook could keep it under, {NOTHING}.\n"
            f"Write a function instead: fn {name}(x: f64) -> f64 {{ .. }}\n"
            f"or box it: let {name}: Box<dyn Fn(f64) -> f64> = Box::new(move |x| ..);\n"
            f"or put it and what uses it between braces {{ }}, where it is not kept. See {PAGE}",
        )
    for name, known in () if closures else found.items():
        if not re.search(rf"\blet\s+(mut\s+)?{re.escape(name)}\s*:", source):
            text = f"the notebook did not find out the type of `{name}`, {NOTHING}.\nSay it: let {name}: {known} = ..;"
            yield error(source, name, text)


def main():
    source = SOURCE.read_text(encoding="utf-8")
    for message in hints(source, types(source, sys.argv[1:])):
        print(json.dumps(message))
    return 0


if __name__ == "__main__":
    sys.exit(main())
