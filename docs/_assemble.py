"""The sources of the documentation site in one folder: ``python docs/_assemble.py OUT``.

Pages and tables that come from the code are generated on the way, so that any generator of sites
that reads Markdown can build the rest:

- ``reference/cli.md`` from the typer application, ``explanation/measurements.md`` from
  ``bench/RESULTS.md`` and ``changelog.md`` from ``CHANGELOG.md``;
- ``<!-- schema: NAME -->`` in any page becomes a table of that JSON schema;
- ``<!-- presets -->`` becomes a table of the presets' constants;
- ``<!-- model sets -->`` becomes a table of the sets of published models.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCHEMAS = ROOT / "docs" / "reference" / "schemas"


def assemble(out: Path) -> None:
    """Write the sources of the site to a folder: those of ``docs/``, and the generated ones."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / "docs", out, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (out / "reference" / "cli.md").write_text(cli_page(), encoding="utf-8")
    shutil.copyfile(ROOT / "CHANGELOG.md", out / "changelog.md")
    shutil.copyfile(ROOT / "bench" / "RESULTS.md", out / "explanation" / "measurements.md")
    for picture in sorted((ROOT / "bench" / "results").rglob("*.png")):
        copy = out / "explanation" / picture.relative_to(ROOT / "bench")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(picture, copy)
    for page in out.rglob("*.md"):
        page.write_text(filled_in(page.read_text(encoding="utf-8")), encoding="utf-8")


def filled_in(markdown: str) -> str:
    """Return a page with the tables that it asks for."""
    markdown = re.sub(r"<!-- schema: ([\w-]+) -->", lambda match: schema_table(match[1]), markdown)
    if "<!-- presets -->" in markdown:
        markdown = markdown.replace("<!-- presets -->", presets_table())
    if "<!-- model sets -->" in markdown:
        markdown = markdown.replace("<!-- model sets -->", model_sets_table())
    return markdown


def cli_page() -> str:
    """Return the reference of every command, as Markdown."""
    import typer

    from granalign_fast.cli.app import app

    parts = [
        "# Command line\n",
        "Generated from the commands themselves; `granalign COMMAND --help` prints the same.\n",
        "Exit codes: 0, all was done; 1, the command ran and its answer is no (`doctor` misses "
        "something that is needed, `bench` found a wrong answer or slower code); 2, wrong use or "
        "bad input, named in one line on stderr.\n",
    ]
    parts += _command("granalign", typer.main.get_command(app), 1)
    return "\n".join(parts)


def _command(name: str, command: Any, level: int) -> Iterator[str]:
    """Yield the heading, the usage and the parameters of a command and of those below it."""
    children = getattr(command, "commands", {})
    shown = [parameter for parameter in command.params if not parameter.hidden]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    options = [p for p in shown if p.param_type_name == "option"]
    if level > 1 or options:
        yield f"{'#' * max(level, 2)} {name}\n"
        yield f"{_paragraphs(command.help)}\n"
    if not children:
        usage = " ".join([name, *map(_argument, arguments), *["[OPTIONS]"] * bool(options)])
        yield f"```text\n{usage}\n```\n"
    if arguments:
        yield "| argument | meaning |\n|---|---|"
        yield from (f"| `{_argument(p)}` | {_cell(p.help)} |" for p in arguments)
        yield ""
    if options:
        yield "| option | default | meaning |\n|---|---|---|"
        yield from (_option(p) for p in options)
        yield ""
    for child, inner in children.items():
        yield from _command(f"{name} {child}", inner, level + 1)


def _argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name).upper() + "..." * (parameter.nargs == -1)
    return name if parameter.required else f"[{name}]"


def _option(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    if not getattr(parameter, "is_flag", False) and parameter.metavar:
        names += f" {parameter.metavar}"
    default = parameter.default
    if parameter.required:
        shown = "required"
    elif default is None or default is False or callable(default):
        shown = ""
    else:
        shown = "on" if default is True else f"`{default}`"
    return f"| {names} | {shown} | {_cell(parameter.help)} |"


def _paragraphs(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def schema_table(name: str) -> str:
    """Return the properties of a JSON schema as a table, nested ones by their path."""
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    rows = ["| key | type | meaning |", "|---|---|---|", *_rows(schema, "")]
    return "\n".join(rows)


def _rows(schema: dict[str, Any], path: str) -> Iterator[str]:
    for key, value in schema.get("properties", {}).items():
        yield from _row(f"{path}{key}", value)
    if isinstance(extra := schema.get("additionalProperties"), dict):
        yield from _row(f"{path}*", extra)
    if "items" in schema:
        yield from _rows(schema["items"], f"{path.rstrip('.')}[].")


def _row(path: str, schema: dict[str, Any]) -> Iterator[str]:
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    yield f"| `{path}` | {' or '.join(kinds)} | {_cell(schema.get('description'))} |"
    yield from _rows(schema, f"{path}.")


_INSTEAD = "**in place of a set's model**, by `--with`"


def model_sets_table() -> str:
    """Return every model of every set, and the alternatives, with sizes in GB and sources."""
    from granalign_fast.cli.models import model_record, set_record
    from granalign_fast.models.published import ALTERNATIVES, MODEL_SETS

    names = ("set", "model", "precision", "to fetch", "on disk", "in memory", "licence")
    rows = [f"| {' | '.join([*names, 'languages', 'read in'])} |", "|---" * 9 + "|"]
    for record in map(set_record, MODEL_SETS.values()):
        head = [f"**`{record['name']}`**: {record['machine']}", "", record["precision"]]
        rows.append(f"| {' | '.join([*head, *_gigabytes(record), '', '', ''])} |")
        rows += map(_model_row, record["models"])
    rows.append(f"| {' | '.join([_INSTEAD, *([''] * 8)])} |")
    rows += [_model_row(model_record(model, "fp16")) for model in ALTERNATIVES.values()]
    return "\n".join(rows)


def _model_row(model: dict[str, Any]) -> str:
    """Return the row of a model, as `granalign models list --json` describes it."""
    licence = model["licence"] + ", gated" * model["gated"]
    licence += " (not verified)" * (not model["licence_verified"])
    cells = ["", f"{model['name']}@{model['revision'][:12]}", model["precision"]]
    cells += [*_gigabytes(model), licence, model["languages"], model["read_in"]]
    return f"| {' | '.join(cells)} |"


def _gigabytes(record: dict[str, Any]) -> list[str]:
    return [f"{record[f'{name}_bytes'] / 1e9:.1f}" for name in ("download", "disk", "memory")]


def presets_table() -> str:
    """Return every constant of every preset."""
    from granalign_fast.config import PRESETS

    columns = {name: dict(_constants(config, "")) for name, config in PRESETS.items()}
    keys = list(dict.fromkeys(key for column in columns.values() for key in column))
    rows = [f"| constant | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for key in keys:
        values = " | ".join(
            f"`{column[key]}`" if key in column else "" for column in columns.values()
        )
        rows.append(f"| `{key}` | {values} |")
    return "\n".join(rows)


def _constants(config: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every constant of a preset; rules that it has not have the value "none"."""
    from granalign_fast.kernels import ContextRules, FeedbackRules

    optional = {"context": ContextRules(), "feedback": FeedbackRules(context=ContextRules())}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from _constants(value, f"{path}{field.name}.")
        elif value is None and field.name in optional:
            absent = _constants(optional[field.name], f"{path}{field.name}.")
            yield from ((name, "none") for name, _ in absent)
        else:
            yield f"{path}{field.name}", value


if __name__ == "__main__":
    assemble(Path(sys.argv[1]))
