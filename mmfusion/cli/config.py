"""`mmfusion config`: the composed configuration and where it comes from, checked; what can be chosen; a schema."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmfusion.cli.flags import configuration
from mmfusion.cli.start import for_good

HELP = "print the composed configuration and where its values come from, list the choices, check, write a schema"
DESCRIPTION = "Print the configuration that `train` would use, checked, each value with what set it; run nothing."
EXAMPLES = """\
  mmfusion config experiment=quickstart optim.lr=1e-3
  mmfusion config --key data.augment --defaults     every argument that could be set there, with type and range
  mmfusion config --list model                      groups and options; * marks the default
  mmfusion config --check model.decoder.depth=6     ok, or what is wrong and exit status 2
  mmfusion config --schema mmfusion.schema.json     for completion and checks in editors"""


def arguments(parser: argparse.ArgumentParser) -> None:
    configuration(parser)
    parser.add_argument("--key", metavar="KEY", help="print only what stands under this key, such as data.augment")
    parser.add_argument("--defaults", action="store_true", help="show what could be set too, and all types and ranges")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--check", action="store_true", help="only say ok, or what is wrong (exit status 2)")
    instead.add_argument(
        "--list", nargs="?", const="", metavar="GROUP", help="list what can be chosen; * marks defaults"
    )
    instead.add_argument("--schema", nargs="?", const="-", metavar="FILE", help="write a JSON schema for editors")


def run(options: argparse.Namespace) -> int:
    config_dir = Path(options.config_dir) if options.config_dir else None
    if options.list is not None:
        _list(options.list or None, config_dir)
    elif options.schema:
        _schema(options.schema, config_dir)
    else:
        _print(options, config_dir)
    return 0


def _print(options: argparse.Namespace, config_dir: Path | None) -> None:
    with for_good():
        from mmfusion import config
        from mmfusion.cli.session import train
        from mmfusion.cli.settle import settled

    composed = config.compose(options.overrides, config_dir)
    before = dict(config.leaves(config.raw(composed)))
    settled(composed)
    if options.check:
        print("ok")
        return
    found = config.origins(options.overrides, config_dir)
    found |= {key: "this run" for key, value in config.leaves(config.raw(composed)) if before.get(key) != value}
    tree = config.printable(composed)
    root = train if options.defaults else None
    print(config.commented(tree, found, config.interpolated(composed), root=root, key=options.key or ""), end="")


def _list(group: str | None, config_dir: Path | None) -> None:
    from rich.table import Table

    from mmfusion import config
    from mmfusion.console import console

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("group", "", "option", "what it is", *(["in"] if config_dir else [])):
        table.add_column(heading, no_wrap=heading != "what it is")
    before = ""
    for option in config.listing(group, config_dir):
        about = " ".join(filter(None, (option.about, option.needs and f"(needs {option.needs})")))
        row = ["" if option.group == before else option.group, "*" if option.default else "", option.name, about]
        table.add_row(*row, *([option.tree] if config_dir else []))
        before = option.group
    console().print(table)


def _schema(file: str, config_dir: Path | None) -> None:
    import json

    from mmfusion import config, runs
    from mmfusion.cli.session import train

    text = json.dumps(config.json_schema(train, list(config.conf_trees(config_dir))), indent=1, ensure_ascii=False)
    if file == "-":
        print(text)
    else:
        runs.write(Path(file), text + "\n")
        print(f"{file}  (first line of a YAML file that editors shall check: # yaml-language-server: $schema={file})")
