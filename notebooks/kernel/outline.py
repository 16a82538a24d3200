"""The sources from which a kernel infers types, without what that does not need.

Reading the standard library and polars whole costs every kernel seconds and 300 MB. Types are inferred from declarations:
bodies of functions go, and of crates other than the library (whose documentation JupyterLab shows on Shift-Tab) comments,
tests and attributes without effect on a type.
"""

import re
from pathlib import Path

TOKEN = re.compile(
    r"""//[^\n]*|/\*(?:[^*]|\*(?!/))*\*/"""  # comments
    r"""|[bc]?r(\#*)".*?"\1|[bc]?"(?:\\.|[^"\\])*\"|b?'(?:\\(?:x..|u\{[^}]*\}|.)|[^'\\\n])'"""  # strings and characters
    r"""|'?[A-Za-z_]\w*|\s+|.""",  # lifetimes, words, space, and all else
    re.DOTALL,
)
COMMENT = re.compile(r"^[ \t]*//.*\n", re.MULTILINE)
IDLE = re.compile(
    r"^[ \t]*#!?\[(?:stable|unstable|inline|must_use|track_caller|doc = |cold|allow|deny|warn|expect|rustc_(?:const|diagnostic|allow|inherit|nounwind"
    r"|no_implicit|safety|as_ptr|never|confusable|skip))[^\n]*\][ \t]*\n",
    re.MULTILINE,
)
WITHOUT = ("tests", "benches", "benchmarks", "examples")


def outline(text, documented):
    """Rust source with the body of every function replaced by `{loop{}}`, which has every type."""
    if not documented:
        text = IDLE.sub("", COMMENT.sub("", text))
    tokens = [match.group() for match in TOKEN.finditer(text)]
    out, at = [], 0
    while at < len(tokens):
        out.append(tokens[at])
        at += 1
        if tokens[at - 1] == "fn" and re.match(r"\s", "".join(tokens[at : at + 1])) and re.match(r"[\w$]", "".join(tokens[at + 1 : at + 2])):
            end = signature(tokens, at)
            out += tokens[at:end]
            at = end
            if end < len(tokens) and tokens[end] == "{":
                at = closing(tokens, end) + 1
                out.append("{loop{}}" if at - end > 6 else "".join(tokens[end:at]))
    return "".join(out)


def signature(tokens, at):
    """Where a function's body starts, or the semicolon stands that it has instead."""
    depth = 0
    while at < len(tokens):
        depth += (tokens[at] in ("(", "[")) - (tokens[at] in (")", "]"))
        if depth < 0 or (depth == 0 and tokens[at] in ("{", ";")):
            break
        at += 1
    return at


def closing(tokens, at):
    """The brace that closes the one at `at`."""
    depth = 0
    while at < len(tokens):
        depth += (tokens[at] == "{") - (tokens[at] == "}")
        if depth == 0:
            break
        at += 1
    return at


def copy(source, target, documented):
    """Copies the outlines of the Rust files in one folder to another."""
    for file in Path(source).rglob("*.rs"):
        place = file.relative_to(source)
        if not documented and any(part in WITHOUT for part in place.parts):
            continue
        made = Path(target) / place
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(outline(file.read_text(encoding="utf-8"), documented), encoding="utf-8")
