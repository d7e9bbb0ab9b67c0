"""The reference of the commands: what each does and takes, read off its parser."""

import argparse
import importlib
import re

from dinov3seg_jax.cli.main import COMMANDS
from dinov3seg_jax.cli.parsing import make_parser
from docs.site.links import linked


def page() -> str:
    """All commands as Markdown: a heading, what the command does, how it is called, and tables of its options."""
    return "\n\n".join(map(_command, COMMANDS))


def _command(word: str) -> str:
    command = importlib.import_module(f"dinov3seg_jax.cli.{word}").COMMAND
    parser = make_parser(f"dinov3seg {word}", command.description)
    command.add_arguments(parser)
    return f"## `{word}`\n\n{parser.description}\n\n{_body(parser)}"


def _body(parser: argparse.ArgumentParser) -> str:
    groups = "\n\n".join(_group(group) for group in parser._action_groups if _shown(group))
    return "\n\n".join(part for part in (_usage(parser), groups, linked(parser.epilog or "")) if part)


def _usage(parser: argparse.ArgumentParser) -> str:
    formatter = argparse.HelpFormatter(parser.prog, width=100)
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
    return f"```text\n{formatter.format_help().removeprefix('usage: ').strip()}\n```"


def _shown(group: argparse._ArgumentGroup) -> list[argparse.Action]:
    return [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]


def _group(group: argparse._ArgumentGroup) -> str:
    actions = _shown(group)
    if isinstance(actions[0], argparse._SubParsersAction):
        return _kinds(actions[0])
    title = {"options": "Options", "positional arguments": "Arguments"}.get(group.title or "", group.title or "")
    about = f"{linked(group.description)}\n\n" if group.description else ""
    rows = "\n".join(f"| {_names(action)} | {_help(action)} |" for action in actions)
    return f"**{linked(title[:1].upper() + title[1:])}**\n\n{about}| | |\n| --- | --- |\n{rows}"


def _kinds(action: argparse._SubParsersAction) -> str:
    """The words that follow the command; those that take the same are described together."""
    about = {choice.dest: choice.help for choice in action._choices_actions}
    alike: dict[str, list[str]] = {}
    for word, parser in action.choices.items():
        own, parser.prog = parser.prog, f"{parser.prog.removesuffix(word)}{action.metavar}"
        alike.setdefault(_body(parser), []).append(word)
        parser.prog = own
    parts = []
    for body, words in alike.items():
        rows = "\n".join(f"| `{word}` | {about[word]} |" for word in words)
        shown = body if len(words) > 1 else _body(action.choices[words[0]])
        parts.append(f"| {action.metavar} | |\n| --- | --- |\n{rows}\n\n{shown}")
    return "\n\n".join(parts)


def _names(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    values = argparse.HelpFormatter("")._format_args(action, action.dest.upper()) if action.nargs != 0 else ""
    return ", ".join(f"`{name}`" for name in action.option_strings) + (f" `{values}`" if values else "")


def _help(action: argparse.Action) -> str:
    text = (action.help or "") % {**vars(action), "prog": "dinov3seg"}
    required = "; required" if action.required and action.option_strings else ""
    return linked(re.sub(r"(?<!`)(--[\w.]+(?:=\S+)?)", r"`\1`", text)) + required
