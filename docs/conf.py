"""How Sphinx makes the site from the pages of this folder: `make docs`. The pages are plain Markdown that reads on GitHub as well."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import gymnasium as gym

import compress_env
from compress_env.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
COMMAND = r"^```\n(?=(?:compress-env|pip|python3?|tensorboard|make|pytest) )"
TOP = {"CONTRIBUTING.md": "project/contributing", "SECURITY.md": "project/security", "CHANGELOG.md": "project/changelog"}
"""Files at the top level, and the pages of the site that show them."""
CODE = r"""\g<0>

<details><summary>Code</summary>

```{literalinclude} ../\1
:language: python
```

</details>
"""

project = "compress_env"
author = "the authors of compress_env"
release = compress_env.__version__
html_title = project

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
highlight_language = "text"
default_role = "code"  # a single backtick in a docstring
smartquotes = False
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
nb_execution_mode = "force"
nb_execution_timeout = 60
nb_execution_raise_on_error = True
nb_output_stderr = "remove"  # hints of libraries, with paths of the machine


def on_page(app, name, source):
    """Changes the text of a page before it is read: files of the top level and docstrings take their places, links follow.

    Blocks of commands, which have no language on GitHub, get one, by which they are wrapped.
    """
    page = ROOT / "docs" / f"{name}.md"
    text = source[0]
    for file, shown in TOP.items():
        if name == shown:
            page, text = ROOT / file, (ROOT / file).read_text(encoding="utf-8")
    if name.startswith("environments/"):
        text = environment_page(text.splitlines()[0].removeprefix("# "))
    if name == "examples":
        text = re.sub(r"^\[(examples/.+)\]\(\.\./.+$", CODE, text, flags=re.M)
    text = re.sub(COMMAND, "```sh\n", text, flags=re.M)
    source[0] = re.sub(r"\]\(([^):]+?\.md)([#)])", lambda link: f"]({target(page, link[1])}{link[2]}", text)


def target(page, link):
    """The link of a file of the top level or of docs/, seen from a page of the site."""
    path = (page.parent / link).resolve().relative_to(ROOT).as_posix()
    return "/" + (TOP[path] + ".md" if path in TOP else path.removeprefix("docs/"))


def environment_page(name):
    """The docstring of an environment, in Gymnasium's form, below the table with which Gymnasium's pages begin."""
    made = gym.envs.registration.load_env_creator(gym.spec(name).entry_point)
    known = [c.__doc__ for c in made.__mro__ if f"{c.__doc__}".startswith("\n    ## Description")]
    spaces = [
        next(found[1] for found in (re.search(rf"## {kind} Space\n *`(.+?)`", doc) for doc in known) if found)
        for kind in ("Action", "Observation")
    ]
    head = f"# {name}\n\n| | |\n|---|---|\n| Action Space | `{spaces[0]}` |\n| Observation Space | `{spaces[1]}` |\n"
    return f'{head}| import | `import compress_env; gym.make("{name}")` |\n\n{inspect.cleandoc(made.__doc__)}\n'


def on_docstring(app, what, name, subject, options, lines):
    """Settings have their help texts in their fields, from which the command line's are made as well."""
    if what == "class" and issubclass(subject, Settings):
        lines += ["", "Args:"]
        helps = [(field.name, field.metadata["help"].replace("*", r"\*")) for field in fields(subject)]
        lines += [f"    {name}: {text}" for name, text in helps] + [""]


def setup(app):
    """Sphinx calls it."""
    app.connect("source-read", on_page)
    app.connect("autodoc-process-docstring", on_docstring, priority=100)  # before napoleon, which turns it into a table
