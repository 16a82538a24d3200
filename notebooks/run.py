#!/usr/bin/env python3
"""Executes the notebooks headless and fails when a cell does.

    run.py [--check | --write] [NAME...]

All notebooks beside this file, or the named ones (`00-tour`), two at a time. A name that ends in `.md` is a page of docs/,
whose Rust blocks are run as cells and must say what stands below them (see page.py); nothing of it is written. A notebook whose every cell succeeded is left
in notebooks/html/, which git ignores, as a page and as an executed notebook; `--write` also updates the committed one, and
`--check` writes nothing. evcxr reports a panic, and an error that `?` hands on, as success: so the output is read for them.
A cell tagged `raises-exception` may fail.

What a notebook prints is compared with what is committed: words must be the same, numbers near (see `apart`). With `--check`
a difference is a failure; else it is told, since models that are trained on the spot come out otherwise on other processors.
"""

import argparse
import asyncio
import os
import re
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PYTHON = ROOT / ".venv" / "bin" / "python"
try:
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellControlSignal, CellTimeoutError, DeadKernelError
    from nbconvert import HTMLExporter

    import page
except ModuleNotFoundError as error:
    if not PYTHON.exists() or os.environ.get("HEADSCOPE_RUN"):
        sys.exit(f"headscope: {error.name} is not there; run `make python`, and this with .venv/bin/python")
    os.environ["HEADSCOPE_RUN"] = "1"
    os.execv(PYTHON, [str(PYTHON), *sys.argv])

AT_A_TIME = 2
CELL_SECONDS = 30 * 60
START_SECONDS = 180
# The kernel puts this word before an error that `?` handed on, and after a panic, whose message is on the other stream.
FAILED = re.compile(r"^Error: .*", re.MULTILINE)
PANIC = re.compile(r"^thread '.*?'.* panicked at .*", re.MULTILINE | re.DOTALL)
# What long work says every few seconds: true for one moment of one run.
PROGRESS = re.compile(r"^.*: \d+ of \d+(, about .* left)?\n", re.MULTILINE)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


NUMBER = re.compile(r"[-+]?\d+(?:\.(\d+))?(?:e([-+]?\d+))?")
LABEL = re.compile(r"<(?:text|title)\b[^>]*>([^<]*)<")
# Of a number's size. Results are float32 and pass through a whole model: tests/common/tolerance.rs derives 5e-5 of their
# scale, of which a number may be a twentieth.
NEAR = 1e-3


class CellFailed(Exception):
    """A cell panicked or ended in an error."""


def complaint(outputs):
    """What went wrong in a cell, from what it printed, or None."""
    printed = {"stdout": "", "stderr": ""}
    for output in outputs:
        if output.output_type == "error":
            return COLOUR.sub("", "\n".join(output.traceback) or f"{output.ename}: {output.evalue}")
        if output.output_type == "stream":
            printed[output.name] += output.text
    found = [pattern.search(printed[name]) for pattern, name in ((PANIC, "stderr"), (FAILED, "stdout"))]
    return COLOUR.sub("", "\n".join(one.group().strip() for one in found if one)) or None


def everything_said(cell):
    """What a cell printed, and its result as text."""
    texts = [output.text if output.output_type == "stream" else output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "\n".join(texts)


def told(cell):
    """The words and numbers of a cell's outputs: what it printed, and the labels of its pictures."""
    parts = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream" and output.name == "stdout":
            parts.append(PROGRESS.sub("", output.text))
        elif output.output_type in ("execute_result", "display_data"):
            parts.extend(LABEL.findall("".join(output.data.get("image/svg+xml", ""))))
            parts.append("".join(output.data.get("text/plain", "")) if len(output.data) == 1 else "")
    return "\n".join(parts)


def apart(found, committed):
    """Whether two texts differ in a word, in a whole number, or in another number by more than rounding explains: by more
    than one unit of the last digit that is printed (it may lie on the edge between two), and by more than NEAR of its size."""

    def words(text):
        return NUMBER.sub("#", text).split()

    def beyond(one, other):
        if one[0].lstrip("-+").isdigit() or other[0].lstrip("-+").isdigit():
            return one[0] != other[0]
        unit = 10.0 ** (int(other[2] or 0) - len(other[1] or ""))
        return abs(float(one[0]) - float(other[0])) > max(1.01 * unit, NEAR * abs(float(other[0])))

    pairs = zip(NUMBER.finditer(found), NUMBER.finditer(committed))
    return words(found) != words(committed) or any(beyond(one, other) for one, other in pairs)


def differences(book, path):
    """The numbers of the cells that say something else than those of the committed notebook."""
    committed = nbformat.read(path, as_version=4).cells
    pairs = enumerate(zip(book.cells, committed), 1)
    return [number for number, (one, other) in pairs if one.cell_type == "code" and apart(told(one), told(other))]


def shorten(text, lines=12):
    kept = text.splitlines()
    return "\n".join(kept[:lines] + (["..."] if len(kept) > lines else []))


def indent(text):
    return "\n".join(f"    {line}" for line in text.splitlines())


async def execute(path):
    """Executes one notebook. Returns it, and for each code cell (its number in the notebook, seconds)."""
    book = page.read(path) if path.suffix == ".md" else nbformat.read(path, as_version=4)
    client = NotebookClient(
        book,
        kernel_name="headscope",
        timeout=CELL_SECONDS,
        startup_timeout=START_SECONDS,
        record_timing=False,
        coalesce_streams=True,
        allow_errors=True,
        resources={"metadata": {"path": str(HERE)}},
    )
    times = []
    async with client.async_setup_kernel():
        for index, cell in enumerate(book.cells):
            if cell.cell_type != "code" or not cell.source.strip():
                continue
            start = time.monotonic()
            where = f"{path.stem}, cell {index + 1}"
            try:
                await client.async_execute_cell(cell, index)
            except DeadKernelError as error:
                raise CellFailed(f"{where}: the kernel died\n{indent(shorten(cell.source))}") from error
            except CellTimeoutError as error:
                raise CellFailed(f"{where}: no end after {CELL_SECONDS} s\n{indent(shorten(cell.source))}") from error
            except CellControlSignal as error:
                raise CellFailed(f"{where}: {error}\n{indent(shorten(cell.source))}") from error
            times.append((index + 1, time.monotonic() - start))
            wrong = complaint(cell.outputs)
            if wrong and "raises-exception" not in cell.metadata.get("tags", []):
                raise CellFailed(f"{where} failed:\n{indent(shorten(cell.source))}\n  with\n{indent(shorten(wrong))}")
            text = "\n".join([everything_said(cell), wrong or ""])
            if (unsaid := page.unsaid(cell, text)) is not None:
                raise CellFailed(f"{where}:\n{indent(cell.source)}\n  does not say\n{indent(unsaid)}\n  but\n{indent(shorten(text))}")
    return book, times


def tidy(book):
    """Takes out what changes from run to run, so that diffs show results only."""
    book.metadata = {
        "kernelspec": {"display_name": "Rust (headscope)", "language": "rust", "name": "headscope"},
        "language_info": {"file_extension": ".rs", "mimetype": "text/rust", "name": "Rust", "pygments_lexer": "rust"},
    }
    count = 0
    for cell in book.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = PROGRESS.sub("", output.text)
            if "execution_count" in output:
                output.execution_count = count
            if "metadata" in output:
                output.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("text", "something")]
    return book


def write(path, text):
    """Whole or not at all; not touched if it is the same already."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)


def save(path, book, committed):
    """The executed notebook, and its page, to html/; and to where it came from, if that is to be written."""
    tidy(book)
    for place in [HERE / "html" / path.name, *([path] if committed else [])]:
        write(place, nbformat.writes(book) + "\n")
    exporter = HTMLExporter(embed_images=True)
    exporter.require_js_url = ""
    exporter.mathjax_url = ""
    body, _ = exporter.from_notebook_node(book, resources={"metadata": {"name": path.stem, "path": str(HERE)}})
    write(HERE / "html" / f"{path.stem}.html", body)


async def one(path, options, turns):
    async with turns:
        start = time.monotonic()
        try:
            book, times = await execute(path)
        except Exception as error:  # one notebook's failure must not hide the others'
            print(f"FAILED  {error if isinstance(error, CellFailed) else f'{path.stem}: {error!r}'}", flush=True)
            return False
        written = path.suffix != ".md"
        other = differences(book, path) if written and not options.write else []
        if written and not options.check:
            save(path, book, options.write)
        if other:
            cells = ", ".join(map(str, other))
            print(f"{'FAILED' if options.check else 'note  '}  {path.stem}: not what is committed: cells {cells}", flush=True)
        number, seconds = max(times, key=lambda pair: pair[1], default=(0, 0.0))
        print(
            f"ok      {path.stem}: {len(times)} cells in {time.monotonic() - start:.1f} s, slowest cell {number} with {seconds:.1f} s",
            flush=True,
        )
        return not (options.check and other)


def choose(names):
    if not names:
        return sorted(path for path in HERE.glob("*.ipynb"))
    pages = [ROOT / "docs" / Path(name).name for name in names if name.endswith(".md")]
    paths = pages + [HERE / f"{Path(name).name.removesuffix('.ipynb')}.ipynb" for name in names if not name.endswith(".md")]
    for path in paths:
        if not path.exists():
            known = ", ".join(sorted(other.stem for other in HERE.glob("*.ipynb"))) or "none"
            sys.exit(f"headscope: there is no {path.name}; the notebooks are: {known}")
    return paths


async def everything(paths, options):
    turns = asyncio.Semaphore(AT_A_TIME)
    return await asyncio.gather(*(one(path, options, turns) for path in paths))


def main():
    parser = argparse.ArgumentParser(description="Executes the notebooks headless and fails when a cell does.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="write nothing; fail where outputs are not those committed")
    what.add_argument("--write", action="store_true", help="update the committed notebooks, too")
    parser.add_argument("name", nargs="*", help="notebooks, e.g. 00-tour (default: all)")
    options = parser.parse_args()
    paths = choose(options.name)
    os.environ["HEADSCOPE_ROOT"] = str(ROOT)
    if sys.prefix != str(PYTHON.parent.parent.resolve()):
        os.environ["JUPYTER_PATH"] = str(ROOT / ".venv" / "share" / "jupyter")
    start = time.monotonic()
    done = asyncio.run(everything(paths, options))
    if not options.check and any(done):
        print(f"pages and executed notebooks: {HERE / 'html'}")
    print(f"{len(paths)} notebooks in {time.monotonic() - start:.1f} s")
    print(f"notebooks: {sum(done)} passed, {len(done) - sum(done)} failed")
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
