"""The documents keep up with the code: their commands' options exist, their links lead somewhere, the README stays short."""

import contextlib
import importlib
import io
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
RECIPES = sorted(ROOT.glob("recipes/*.sh"))
SCRIPTS = ["train_h2l", "train", "test", "evaluate", "export", "photos", "benchmarks/bench"]
SCRIPTS += [f"Datasets/{name}" for name in ("make_csv", "make_demo", "make_faces")]
# of other programs and of gpu.sh
OTHERS = {"--nproc_per_node", "--quiet", "--faces", "--minutes", "--signal", "--kill-after", "--depth"}
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
COMMAND = re.compile(r"(?:python|torchrun .*?|\"\$PYTHON\") ([\w/]+)\.py\b([^\n#|]*)")


@cache
def options_of(script: str) -> frozenset[str]:
    """The options in the script's help; script: its path without .py, as in "Datasets/make_csv"."""
    module, output = importlib.import_module(script.replace("/", ".")), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output), pytest.raises(SystemExit):
        patch.setattr("sys.argv", [f"{script}.py", "--help"])
        module.main()
    return frozenset(OPTION.findall(output.getvalue()))


def commands(text: str) -> list[tuple[str, str]]:
    """(script, arguments) of each Python command in a document or recipe."""
    return COMMAND.findall(text.replace("\\\n", " "))


def headings(path: Path) -> set[str]:
    """GitHub's anchors of a document's headings."""
    titles = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", [*DOCUMENTS, *RECIPES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_option_of_a_command_exists(path):
    for script, arguments in commands(path.read_text("utf-8")):
        named = set(OPTION.findall(arguments))
        unknown = named and named - options_of(script)
        assert not unknown, f"{script}.py has no {', '.join(sorted(unknown))}"


@pytest.mark.parametrize("path", [*DOCUMENTS, *RECIPES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_option_named_exists_somewhere(path):
    known = OTHERS.union(*map(options_of, SCRIPTS))
    unknown = set(OPTION.findall(path.read_text("utf-8"))) - known
    assert not unknown, f"no script has {', '.join(sorted(unknown))}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", path.read_text("utf-8")):
        file = path.parent / target if target else path
        assert file.exists(), f"{path.name}: no {target}"
        assert not anchor or anchor in headings(file), f"{path.name}: {target} has no heading {anchor}"
