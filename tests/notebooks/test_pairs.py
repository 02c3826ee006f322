"""Each notebook is a pair: the .py is the source of truth, the .ipynb holds the same cells and their outputs."""

import ast
from pathlib import Path

import jupytext
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
STEMS = sorted({path.stem for suffix in (".py", ".ipynb") for path in NOTEBOOKS.glob(f"*{suffix}")} - {"conftest"})
MAX_BYTES = 1_000_000
# A cell may end in one of these without showing anything. For any other such call, write `_ = call(...)`.
RETURN_NONE = {
    *(
        "append",
        "extend",
        "update",
        "clear",
        "sort",
        "add",
        "close",
        "seed",
        "setLevel",
        "simplefilter",
        "filterwarnings",
    ),
    *("assert_close", "assert_allclose", "assert_array_equal", "set_num_threads", "use_deterministic_algorithms"),
    *("backward", "zero_grad", "load_dotenv", "set_verbosity_error", "disable_progress_bar", "run_line_magic"),
}
SHOW = {"print", "display", "check", "show", "system"}


# What a pair must satisfy. Each function returns one line for each thing that is wrong.


def differences(source, stored):
    """Cells whose type, text or tags differ between the .py and the .ipynb."""

    def key(cell):
        return cell.cell_type, cell.source, tuple(cell.metadata.get("tags", ()))

    problems = []
    for number, (a, b) in enumerate(zip(source.cells, stored.cells, strict=False), start=1):
        if key(a) != key(b):
            part = next(name for name, x, y in zip(("type", "source", "tags"), key(a), key(b), strict=True) if x != y)
            problems.append(f"cell {number}: not the same {part} in the .py and the .ipynb: {first_line(a)}")
    if len(source.cells) != len(stored.cells):
        problems.append(f"the .py has {len(source.cells)} cells, the .ipynb {len(stored.cells)}")
    return problems


def must_show(source):
    """Whether this code certainly shows something: it prints, displays or plots, or ends in a bare expression."""
    tree = ast.parse(TransformerManager().transform_cell(source))
    if any(called(node) in SHOW for node in always_run(tree)):
        return True
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr) or source.rstrip().endswith(";"):
        return False
    is_none = isinstance(last.value, ast.Constant) and last.value.value is None
    return not is_none and called(last.value) not in RETURN_NONE | {"run_cell_magic"}


def always_run(node):
    """The nodes that run whenever the cell does: not in a function that is only defined, nor in a branch."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda | ast.ExceptHandler):
            continue
        yield child
        yield from always_run(child.test if isinstance(child, ast.If | ast.IfExp) else child)


def called(node):
    """The last part of the name of a call: `show` for plt.show()."""
    function = getattr(node, "func", None)
    return getattr(function, "attr", getattr(function, "id", None))


def output_problems(nb):
    """Outputs that are missing, out of order, errors, or tied to one machine; claims that nbval would not compare."""
    problems, count = [], 0
    for number, cell in enumerate(nb.cells, start=1):
        if cell.cell_type != "code":
            continue
        count += 1
        where = f"cell {number} ({first_line(cell)})"
        if cell.execution_count != count:
            problems.append(f"{where}: execution count {cell.execution_count}, not {count}: run the whole notebook")
        if any(output.output_type == "error" for output in cell.outputs):
            problems.append(f"{where}: an error is stored")
        if must_show(cell.source) and not any(is_shown(output) for output in cell.outputs):
            problems.append(f"{where}: its output is missing")
        calls = {called(node) for node in always_run(ast.parse(TransformerManager().transform_cell(cell.source)))}
        if "check" in calls and "nbval-check-output" not in cell.metadata.get("tags", ()):
            problems.append(f"{where}: a claim needs the tag nbval-check-output")
        if any(home in str(cell.outputs) for home in ("/home/", "/Users/", "/root/", "ipykernel_", "\\Users\\")):
            problems.append(f"{where}: its output names a folder of one machine")
    return problems


def is_shown(output):
    """Whether a reader without a kernel sees it; a warning on stderr is not what a cell is for."""
    return bool(output.get("data")) or (output.get("name") == "stdout" and bool(output.text.strip()))


def first_line(cell):
    return (cell.source.strip().splitlines() or ["(empty)"])[0][:60]


# The shipped notebooks.


def test_there_are_notebooks():
    assert STEMS, f"no notebooks found in {NOTEBOOKS}"


@pytest.mark.parametrize("stem", STEMS)
class TestNotebook:
    def test_pair_is_complete(self, stem):
        assert (NOTEBOOKS / f"{stem}.py").exists(), f"{stem}.ipynb has no .py"
        assert (NOTEBOOKS / f"{stem}.ipynb").exists(), f"{stem}.py has no .ipynb: run `make store`"

    def test_pair_holds_the_same_cells(self, stem):
        source = jupytext.read(NOTEBOOKS / f"{stem}.py", fmt="py:percent")
        problems = differences(source, nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4))
        assert not problems, "\n".join(["edit the .py, then run `make store`", *problems])

    def test_outputs_are_stored(self, stem):
        problems = output_problems(nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4))
        assert not problems, "\n".join(problems)

    def test_file_is_valid_small_and_free_of_widget_state(self, stem):
        path = NOTEBOOKS / f"{stem}.ipynb"
        nb = nbformat.read(path, as_version=4)
        nbformat.validate(nb)
        assert "widgets" not in nb.metadata, "GitHub refuses a notebook with metadata.widgets"
        assert path.stat().st_size < MAX_BYTES


# The checks above on notebooks that are wrong in one way each.


def code(source, *, outputs=(), count=1, tags=()):
    return new_code_cell(source, outputs=list(outputs), execution_count=count, metadata={"tags": list(tags)})


def stdout(text):
    return new_output("stream", name="stdout", text=text)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda nb: nb.cells[1].update(source="y = 1"), "cell 2: not the same source"),
        (lambda nb: nb.cells[0].update(source="# Title "), "cell 1: not the same source"),
        (lambda nb: nb.cells[1].metadata.update(tags=["slide"]), "cell 2: not the same tags"),
        (lambda nb: nb.cells.insert(1, new_markdown_cell("x = 1")), "cell 2: not the same type"),
        (lambda nb: nb.cells.pop(), "the .py has 2 cells, the .ipynb 1"),
    ],
)
def test_an_edit_of_one_file_is_named(edit, problem):
    source = new_notebook(cells=[new_markdown_cell("# Title"), code("x = 1")])
    stored = new_notebook(cells=[new_markdown_cell("# Title"), code("x = 1")])
    assert differences(source, stored) == []
    edit(stored)
    assert differences(source, stored)[0].startswith(problem)


@pytest.mark.parametrize(
    "source",
    [
        "x = 1\nx",
        "print(1)",
        "for i in range(2):\n    print(i)",
        "with torch.no_grad():\n    y = model(x)\n    display(y)",
        "plt.plot(x)\nplt.show()",
        "ax.plot(x)",
        'check("one", True)',
        "frame.head()",
        "!ls",
        "%matplotlib inline\nx",
    ],
)
def test_cells_that_must_show_something(source):
    assert must_show(source)


@pytest.mark.parametrize(
    "source",
    [
        "x = 1",
        "x;",
        "def f():\n    print(1)",
        "@exercise('a')\ndef f(x):\n    return x",
        "if in_colab:\n    print('installing')",
        "torch.testing.assert_close(a, b)",
        "_ = ax.plot(x)",
        "# only a comment",
        "%matplotlib inline",
        "f = lambda x: print(x)",
        "None",
    ],
)
def test_cells_that_may_stay_silent(source):
    assert not must_show(source)


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        (code("print(1)"), "output is missing"),
        (code("print(1)", outputs=[new_output("stream", name="stderr", text="warning")]), "output is missing"),
        (code("print(1)", outputs=[stdout("1")], count=7), "execution count 7, not 1"),
        (code("print(1)", outputs=[stdout("1")], count=None), "execution count None"),
        (code("x = 1", outputs=[new_output("error", ename="E", evalue="", traceback=[])]), "an error is stored"),
        (code('check("a", b)', outputs=[stdout("CLAIM ok: a")]), "a claim needs the tag"),
        (code("x = 1", outputs=[new_output("stream", name="stderr", text="/home/me/x.py:1: Warning")]), "one machine"),
    ],
)
def test_a_broken_output_is_named(cell, problem):
    assert problem in "\n".join(output_problems(new_notebook(cells=[cell])))


def test_good_outputs_pass():
    claim = code('check("a", b)', outputs=[stdout("CLAIM ok: a\n")], count=2, tags=["nbval-check-output"])
    picture = new_output("display_data", data={"image/png": "aGk=", "text/plain": "<Figure>"})
    cells = [code("fig()", outputs=[picture]), new_markdown_cell("text"), claim, code("x = 1", count=3)]
    assert output_problems(new_notebook(cells=cells)) == []
