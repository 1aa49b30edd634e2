"""The documentation: its Python runs, and its links lead somewhere."""

from __future__ import annotations

import ast
import configparser
import doctest
import functools
import importlib
import json
import os
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

import blackbox.estimator
from blackbox.cli import main
from blackbox.cli.help import SHOW_ALL

ROOT = Path(__file__).parent.parent
MARKDOWN = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))
PAGES = [page for page in [*MARKDOWN, *NOTEBOOKS] if page.name != "CHANGELOG.md"]  # of the past

LINK = re.compile(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)
PATH = re.compile(r"(?<![\w./-])(?:blackbox|backends|eval|tests|docs)/[\w./*-]+")
DOTTED = re.compile(r"(?<![\w./-])(?:blackbox|backends|eval)(?!\.toml\b)(?:\.[A-Za-z_]\w*)+")
IMPORT = re.compile(
    r"^ *from ((?:blackbox|backends|eval)(?:\.\w+)*) import (\w[\w, ]*)$", re.MULTILINE
)
PLACEHOLDER = re.compile(r"[/.][A-Z]+\b")  # a part that the reader fills in: `backends/NAME.py`


def read(page):
    """The text of a page; of a notebook that of its Markdown cells, as its code runs in tests."""
    if page.suffix == ".md":
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def examples(page):
    return re.findall(r"<!-- run as a test -->\n```python\n(.*?)```", read(page), re.DOTALL)


@pytest.mark.lm
def test_the_example_of_the_first_page_runs(lm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = examples(ROOT / "docs" / "start.md")
    exec(compile(code, "start.md", "exec"), {})
    said = capsys.readouterr().out
    assert "delivery" in said
    assert "forward passes" in said
    assert [path.name for path in tmp_path.iterdir()] == ["parcels.blackbox"]


def test_the_example_with_several_labels_finds_the_label(capsys):
    (code,) = examples(ROOT / "docs" / "several-labels.md")
    exec(compile(code, "several-labels.md", "exec"), {})
    assert "[('delivery', 'refund'), ('delivery',), ()]" in capsys.readouterr().out


def test_the_example_with_images_learns(capsys):
    pytest.importorskip("PIL", reason="needs the `images` extra")
    (code,) = examples(ROOT / "docs" / "images.md")
    exec(compile(code, "images.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0.8


@pytest.mark.slow
@pytest.mark.lm
def test_the_examples_without_labels_run(lm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start, further = examples(ROOT / "docs" / "zero-labels.md")
    (suggest,) = examples(ROOT / "docs" / "suggest.md")
    names = {"texts": ["A lovely lamp", "It broke at once", "Works perfectly", "Awful quality"] * 6}
    names["labels"] = ["positive", None, None, "negative"] * 6
    exec(compile(start, "zero-labels.md", "exec"), names)
    exec(compile(further, "zero-labels.md", "exec"), names)
    assert names["classifier"].training_summary_["n_rows"] == 12
    exec(compile(suggest, "suggest.md", "exec"), names)
    assert len(set(names["rows"])) == len(names["rows"]) > 0


def test_every_page_has_a_place_in_the_navigation_of_the_site():
    def places(entries):
        for entry in entries:
            (place,) = entry.values()
            yield from places(place) if isinstance(place, list) else [place]

    site = tomllib.loads((ROOT / "zensical.toml").read_text("utf-8"))["project"]
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    notebooks = {notebook.stem + ".md" for notebook in NOTEBOOKS}
    made = notebooks | {"changelog.md", "contributing.md"}  # by .ci/site
    listed = list(places(site["nav"]))
    assert sorted(listed) == sorted(pages | made)


def test_the_backend_of_one_s_own_classifies(capsys):
    embeddings, code, checked, more = examples(ROOT / "docs" / "backends.md")
    names = {}
    exec(compile(embeddings, "backends.md", "exec"), names)
    texts = [f"{letter * n} {number}" for number, n in enumerate(range(1, 9)) for letter in "ab"]
    fitted = names["embedded"].set_params(top_k=512).fit(texts, [0, 1] * 8)
    assert fitted.predict(["aaa", "bbb"]).tolist() == [0, 1]
    exec(compile(code, "backends.md", "exec"), names)
    assert capsys.readouterr().out == "['+' '-']\n"
    exec(compile(checked, "backends.md", "exec"), names)
    exec(compile(more, "backends.md", "exec"), names)
    assert names["classifier"].connect().limits.counts_tokens


def test_the_examples_of_the_docstrings_hold():
    assert doctest.testmod(blackbox.estimator).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target, fragment in LINK.findall(read(page)):
        other = page.parent / target if target else page
        assert other.exists(), target
        assert not fragment or fragment in anchors(other), f"{target}#{fragment}"


def anchors(page):
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", read(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_modules_named_in_code_exist(page):
    code = "\n".join(CODE.findall(read(page)))
    missing = [path for path in PATH.findall(code) if not any(ROOT.glob(path.rstrip(".")))]
    names = [*DOTTED.findall(code), *imported(code)]
    missing += [name for name in names if not resolves(name)]
    assert not [name for name in missing if not PLACEHOLDER.search(name)]


@pytest.mark.parametrize(
    ("name", "exists"),
    [
        ("blackbox.boosting.logit", True),
        ("blackbox.boosting.logit.Settings", True),
        ("blackbox.boosting.early_stopping.EarlyStopping.stages", True),
        ("blackbox.PromptBoostingClassifier", True),
        ("blackbox.boosting.stopping", False),
        ("blackbox.boosting.logit.Setting", False),
        ("blackbox.boosting.early_stopping.EarlyStopping.stage", False),
    ],
)
def test_a_dotted_name_resolves_only_where_it_is_defined(name, exists):
    assert resolves(name) == exists


FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
PYTHON = re.compile(r"^(<!-- .* -->)?\n?^```python\n", re.MULTILINE)
EXTRAS = re.compile(r"(?:promptboosting|'\.|\"\.)\[([\w,]+)\]")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_runs_as_a_test_or_the_page_says_why_not(page):
    marks = [mark or "" for mark in PYTHON.findall(read(page))]
    for mark in marks:
        assert re.fullmatch(r"<!-- (run as a test|not run here: .{10,}) -->", mark), mark


def commands(page, program=r"(?:\S*/)?blackbox(?= [a-z])"):
    """The words of each command of a program in a page's code, without what the shell does."""
    text = read(page)
    shell = [code for language, code in FENCE.findall(text) if language in ("sh", "bash")]
    spans = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    for line in [*"\n".join(shell).replace("\\\n", " ").splitlines(), *spans]:
        for part in re.split(r"&&|;(?!\")|\$\(", line):  # a separator in quotes ends no command
            found = re.match(rf"(?:[A-Z_]+=\S* )*{program} *(.*)", part.strip())
            if found and "import" not in part:
                words = shlex.split(re.split(r" [|>]", found[found.lastindex])[0], comments=True)
                yield [*found.groups()[:-1], *(word for word in words if word != "…")]


def misused(words, main=main):
    """Return what the parser says of a command's words; None where its options are right."""
    command, context = main, click.Context(main, info_name="blackbox", **main.context_settings)
    while isinstance(command, click.Group) and words:
        name, *words = words
        child = command.get_command(context, name)
        if child is None:
            return f"no command {name}"
        context = click.Context(child, info_name=name, parent=context)
        command = child
    try:
        options, _, _ = command.make_parser(context).parse_args(list(words))
        for param in command.params:
            value = options.get(param.name)
            fixed = isinstance(param.type, click.Choice | click.types.IntParamType)
            if fixed and isinstance(value, str) and not value.isupper():
                param.type.convert(value, param, context)
    except click.UsageError as error:
        told = error.format_message()
        return None if "requires an argument" in told else told  # an option that is only named
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_options_that_exist(page):
    wrong = {" ".join(words): misused(words) for words in commands(page)}
    assert not {words: why for words, why in wrong.items() if why}


def study(name):
    """A module of `eval`; None where it needs a package that isn't installed here."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("eval", "blackbox", "backends"):
            raise
        return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_studies_have_options_that_exist(page):
    wrong = {}
    for module, *words in commands(page, r"python -m (eval[.\w]*)"):
        script = study(module if "." in module else f"{module}.__main__")
        if script is None:
            continue  # of an extra that isn't installed here
        if isinstance(script.main, click.Command):
            told = misused([word.strip("[]") for word in words], script.main)
            wrong |= {f"{module} {' '.join(words)}": told} if told else {}
    assert not wrong


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("train rows.csv --seed 1 --out m", None),
        ("train rows.csv --sead 1", "No such option '--sead'"),
        ("train rows.csv --seed x", "'x' is not a valid integer"),
        ("trane rows.csv", "no command trane"),
        ("store recover", None),
        ("store recovr", "no command recovr"),
    ],
)
def test_a_command_with_a_wrong_option_is_found(line, why):
    told = misused(line.split())
    assert (told is None) if why is None else why in told


def test_extras_in_the_documentation_exist():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    text = "\n".join(map(read, PAGES))
    named = {extra for extras in EXTRAS.findall(text) for extra in extras.split(",")}
    assert len(named) > 5
    assert named <= {*setup["options.extras_require"]}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_notebook_imports_exists(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    names = imported("\n".join("".join(cell["source"]) for cell in cells))
    assert len(names) > 1
    assert not [name for name in names if not resolves(name)]


def imported(code):
    """The dotted names that the lines `from MODULE import NAME, …` of our packages bring in."""
    return [
        f"{module}.{name.split()[0]}"
        for module, names in IMPORT.findall(code)
        for name in names.split(",")
    ]


def resolves(name):
    """Whether a dotted name is a module, or what one defines, without importing it."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        folder = ROOT.joinpath(*parts[:n])
        file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
        if file.exists():
            return defines(ast.parse(file.read_text()), parts[n:])
    return False


def defines(node, names):
    """Whether a parsed module or class defines the first name, which defines the next one."""
    if not names:
        return True
    classes = [child for child in node.body if isinstance(child, ast.ClassDef)]
    if any(child.name == names[0] and defines(child, names[1:]) for child in classes):
        return True
    return len(names) == 1 and any(names[0] in bound_by(child) for child in node.body)


def bound_by(statement):
    """The names that a statement of a module or a class binds, lazy exports included."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in statement.names}
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        bound = {target.id for target in targets if isinstance(target, ast.Name)}
        return bound | (set(ast.literal_eval(statement.value)) if "__all__" in bound else set())
    return set()


PROMISE = re.compile(r"^\| (?P<promise>.+?) \| `(?P<file>tests/\w+\.py)::(?P<name>\w+)` \|$")


def test_each_promise_names_a_test_that_exists():
    rows = [
        line
        for line in (ROOT / "docs" / "promises.md").read_text().splitlines()
        if line.startswith("|") and not line.startswith(("| promise |", "|---"))
    ]
    promises = [PROMISE.match(row) for row in rows]
    assert all(promises), [row for row, one in zip(rows, promises, strict=True) if not one]
    missing = [one[0] for one in promises if one["name"] not in defined_in(ROOT / one["file"])]
    assert not missing
    sentences = [one["promise"] for one in promises]
    assert len(sentences) > 50
    assert len(set(sentences)) == len(sentences)
    assert all(sentence.endswith(".") for sentence in sentences)


@functools.cache
def defined_in(path):
    """The names of the tests of a file, those in classes included."""
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in nodes if isinstance(node, functions)}


def test_the_readme_has_its_two_commands():
    text = (ROOT / "README.md").read_text()
    venv = "python3 -m venv .venv && .venv/bin/"
    assert f"{venv}pip install -e '.[local]' && .venv/bin/blackbox quickstart" in text
    assert f"{venv}pip install -e '.[local,test]' && .venv/bin/pytest" in text


def test_the_accuracies_of_the_readme_are_those_of_the_results():
    def rows(text):
        named = re.findall(r"^\| ([^|]+) \|(.*\d\d\.\d.*)\|$", text, re.MULTILINE)
        return [(name, [cell.strip() for cell in cells.split("|")]) for name, cells in named]

    _, _, after = (ROOT / "README.md").read_text().partition("[start:accuracy]")
    shown = rows(after.partition("[end:accuracy]")[0])
    assert len(shown) > 8
    results = rows((ROOT / "docs" / "results.md").read_text())
    for name, cells in shown:
        assert any(one == name and set(cells) <= set(known) for one, known in results), name


def help_of_all_commands():
    """Every command's help with all options, as Markdown."""
    pages = [
        "# The `blackbox` command\n\nAll options, as `--help-all` shows them; `--help` shows the "
        "common ones. Written by `UPDATE_DOCS=1 pytest tests/test_docs.py`.\n"
    ]

    def add(name, command, parent):
        context = click.Context(
            command, info_name=name, parent=parent, terminal_width=96, **command.context_settings
        )
        context.meta[SHOW_ALL] = True
        path = context.command_path
        pages.append(f"\n## `{path}`\n\n```\n{command.get_help(context)}\n```\n")
        if isinstance(command, click.Group):
            for child in command.list_commands(context):
                add(child, command.get_command(context, child), context)

    add("blackbox", main, None)
    return "".join(pages)


def test_the_help_in_the_documentation_is_the_help_of_the_command():
    page = ROOT / "docs" / "cli.md"
    if os.environ.get("UPDATE_DOCS"):
        page.write_text(help_of_all_commands())
    assert page.read_text() == help_of_all_commands()
