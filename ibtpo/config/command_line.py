"""The command line of every program: a config file, overrides of its keys, the program's own flags.

    python -m ibtpo.train --config=configs/tiny.py --workdir=runs/tiny --config.train.steps=3
"""

import contextlib
import errno
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from ibtpo import messages
from ibtpo.arguments import program
from ibtpo.config.describe import BASE, Keys, help_text, in_order
from ibtpo.config.files import load
from ibtpo.config.folders import check_folder, log_error, remove_empty
from ibtpo.config.keys import ConfigError, flatten, nearest_key, shown
from ibtpo.config.resolve import resolve
from ibtpo.errors import RunFailure, UserError

_PACKAGE = __name__.split(".")[0]
_OVERRIDE = re.compile(r"--?(?P<no>no)?config\.(?P<key>[^=]*)(=(?P<value>.*))?", re.DOTALL)
_PRINT_CONFIG = ("--print_config", "-print_config", "--print-config")
# Of a file that cannot be written or read, whatever the program does: the disk is full, or broken.
_STORAGE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
_FLAGS = "  --print_config: print the resolved configuration as JSON, which --config=FILE.json reads, and end"
_PARSERS: dict[type, tuple[flags.ArgumentParser, str, str]] = {
    int: (flags.IntegerParser(), "a whole number (int)", "3"),
    float: (flags.FloatParser(), "a number (float)", "0.5"),
    bool: (flags.BooleanParser(), "true or false (bool)", "true"),
}


def _type_of(config: ConfigDict, key: str) -> type:
    """The type of a key's values, open or not."""
    *sections, leaf = key.split(".")
    for name in sections:
        config = config[name]
    return config.get_type(leaf)


def _check_override(config: ConfigDict, no: bool, key: str, value: str | None, argument: str) -> None:
    """Raises a ConfigError that names key and type before absl would stop with a message of its own."""
    keys, argument = flatten(config), shown(argument)[1:-1]
    if key not in keys:
        raise ConfigError(f"{argument}: unknown key {shown(key)[1:-1]}; {nearest_key(key, keys)}")
    kind = _type_of(config, key)
    parser, words, example = _PARSERS.get(kind, (flags.ArgumentParser(), "text", '"..."'))
    if value is None and kind is bool:
        return
    if value is None or no:
        raise ConfigError(f"{argument}: {key} needs {words} after '=', e.g. --config.{key}={example}")
    try:
        parser.parse(value)
    except (ValueError, TypeError):
        given = f"{argument}: {key} needs {words}, not {shown(value)}"
        raise ConfigError(f"{given}; e.g. --config.{key}={example}") from None


def _split_command_line(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of --config and every other argument."""
    path, rest, pending = None, [], False
    for argument in arguments:
        if pending:
            path, pending = argument, False
        elif argument in ("--config", "-config"):
            pending = True
        elif argument.startswith(("--config=", "-config=")):
            path = argument.split("=", 1)[1]
        else:
            rest.append(argument)
    return path, rest


def _check_overrides(config: ConfigDict, arguments: Sequence[str]) -> None:
    """Raises a ConfigError for the first --config.key=value that names no key, or a value of another type."""
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        if match := _OVERRIDE.fullmatch(argument):
            value = match["value"]
            following = arguments[index + 1] if index + 1 < len(arguments) else None
            is_bool = match["key"] in flatten(config) and _type_of(config, match["key"]) is bool
            if value is None and not match["no"] and not is_bool and following and not following.startswith("-"):
                value, index = following, index + 1
            _check_override(config, bool(match["no"]), match["key"], value, argument)
        index += 1


def _check_flags(arguments: Sequence[str], command: str, flag_values: flags.FlagValues) -> None:
    """Raises a ConfigError for a flag of another command, defined here only because its module was imported.

    Absl has one table of flags for the whole process: without this check such a flag is accepted and ignored.
    """
    for argument in arguments:
        name = argument.lstrip("-").split("=")[0]
        if not argument.startswith("-") or _OVERRIDE.fullmatch(argument):
            continue
        names = [name, name.removeprefix("no")] if name not in flag_values else [name]
        owner = next((m for n in names if (m := flag_values.find_module_defining_flag(n))), "")
        if owner.startswith(f"{_PACKAGE}.") and owner not in (command, __name__):
            given = shown(argument)[1:-1]
            raise ConfigError(f"{given}: unknown flag: --{names[-1]} belongs to {owner}, not to this command")


def parse_flags(
    argv: Sequence[str] | None = None,
    *,
    resolve: Callable[[ConfigDict], ConfigDict] | None = resolve,
    needs_workdir: bool = True,
    command: str = "__main__",
    flag_values: flags.FlagValues = flags.FLAGS,
) -> tuple[ConfigDict, str | None]:
    """(config, workdir) of a command line; flags that the command has defined through absl are parsed too.

    Args:
      argv: program name and arguments; None: sys.argv.
      resolve: completes and checks the configuration; None for a program with keys of its own (the configuration
        is then locked as it is).
      needs_workdir: whether --workdir must be given; the workdir is None without it.
      command: module of the command. A flag that another module of this package has defined is refused.
      flag_values: where absl keeps the flags.

    Raises:
      ConfigError: anything wrong on the command line or in the configuration.
    """
    program, *arguments = sys.argv if argv is None else argv
    path, rest = _split_command_line(arguments)
    if not path:
        raise ConfigError("--config is missing: name a config file, e.g. --config=configs/tiny.py")
    config = load(path)
    _check_overrides(config, rest)
    _check_flags(rest, command, flag_values)

    if "config" in flag_values:  # a second call in one process
        for name in [n for n in flag_values if n == "config" or n.startswith("config.")]:
            delattr(flag_values, name)
    line = [program, *rest]
    holder = config_flags.DEFINE_config_dict(
        "config", config, "a config file; --config.section.key=value overrides a key", flag_values, sys_argv=line
    )
    if "workdir" not in flag_values:
        flags.DEFINE_string(
            "workdir", None, "folder of checkpoints, metrics and the saved config", flag_values=flag_values
        )
    try:
        leftover = flag_values(line)[1:]
        workdir = flag_values["workdir"].value
    except flags.Error as error:
        raise ConfigError(_explain_unknown_flag(" ".join(str(error).split()), config)) from None
    if leftover:
        example = f"; did you mean --{leftover[0].lstrip('-')[:100]}?" if "=" in leftover[0] else ""
        raise ConfigError(f"unexpected argument {shown(leftover[0])}: options start with two dashes{example}")
    if needs_workdir and not workdir:
        raise ConfigError("--workdir is missing: name the folder of the run, e.g. --workdir=runs/tiny")
    config = holder.value
    return (config.lock() if resolve is None else resolve(config)), workdir or None


def _explain_unknown_flag(message: str, config: ConfigDict) -> str:
    """absl's message, with the hint that a key of the configuration is written --config.key."""
    name = re.search(r"'([^']+)'", message)
    key = name[1].split("=")[0] if name else ""
    return f"{message.rstrip('.')}; did you mean --config.{key}?" if key in flatten(config) else message


def _print_help(command: str, keys: Keys, path: str | None, arguments: Sequence[str]) -> None:
    """Usage, the command's flags, and every key; overrides count where they are right, and none needs to be."""
    main = sys.modules["__main__"]
    print((main.__doc__ or "").strip())
    print(f"\nusage: {program()} --config=FILE --workdir=FOLDER [--config.section.key=value ...] [flags]\n")
    print(flags.FLAGS.main_module_help() or "")
    if command != "__main__":
        print(flags.FLAGS.module_help(command) or "")
    print(f"{_FLAGS}\n")
    config = load(path or keys.name)
    for argument in arguments:
        match = _OVERRIDE.fullmatch(argument)
        if match and match["value"] is not None and isinstance(flatten(config).get(match["key"], 0), str | None):
            with contextlib.suppress(TypeError, ValueError, KeyError):  # the method, above all
                config.update_from_flattened_dict({match["key"]: match["value"]})
    print(help_text(keys, config, f"--config={path}" if path else f"configs/{keys.name}.py"))


def _print_config(keys: Keys, config: ConfigDict) -> None:
    """The whole configuration as JSON, which --config reads again."""
    print(json.dumps(in_order(keys, config), indent=2))


def run(
    main: Callable[[ConfigDict, str], int | None],
    *,
    resolve: Callable[[ConfigDict], ConfigDict] | None = resolve,
    needs_workdir: bool = True,
    writes_workdir: bool = True,
    keys: Keys = BASE,
) -> None:
    """Entry point of every command: main(config, workdir) with the command line's configuration.

    What `main` returns is the program's exit code (None: 0). A UserError, of the command line or raised by `main`, is
    printed in one line and ends the program with code 2, a RunFailure, or storage that takes no more, with code 1; any
    other exception keeps its traceback. Whatever `main` raised is added to error.log in the workdir with its traceback,
    if that folder is there.
    The command's flags are those of the module where `main` is defined and of the one that is run. `--help` prints the
    program's docstring, its flags and every key; `--print_config` prints the resolved configuration
    and ends. See `parse_flags` for the options.

    Args:
      writes_workdir: whether a workdir is refused in which no file can be made; nothing is left of the attempt.
      keys: those of the program, for its help.
    """
    parsed: list[Any] = []

    def parser(argv: Sequence[str]) -> list[str]:
        if any(argument in ("--help", "-help", "-h", "-?", "--helpfull", "--helpshort") for argument in argv):
            _print_help(main.__module__, keys, *_split_command_line(argv[1:]))
            sys.exit(0)
        shows = [argument for argument in argv if argument in _PRINT_CONFIG]
        config, workdir = parse_flags(
            [argument for argument in argv if argument not in shows],
            resolve=resolve,
            needs_workdir=needs_workdir and not shows,
            command=main.__module__,
        )
        if shows:
            _print_config(keys, config)
            sys.exit(0)
        if writes_workdir and workdir is not None:
            check_folder("--workdir", workdir)
        parsed.extend((config, workdir))
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # libraries report every file they open
        return list(argv[:1])

    def logged(_: Sequence[str]) -> int | None:
        workdir = parsed[1]
        is_new = workdir is not None and not os.path.isdir(workdir)
        try:
            return main(*parsed)
        except Exception as error:
            if is_new:
                remove_empty(workdir)
            log_error(workdir, error)
            raise

    messages.plain()
    with _one_line():
        app.run(logged, flags_parser=parser)


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Ends the program in one line where Ctrl-C, the user's input or the machine ends it."""
    try:
        yield
    except KeyboardInterrupt:  # in training it is a request to save and end (`ibtpo.interruption`)
        print("interrupted: what was written is whole; run the same command again", file=sys.stderr)
        sys.exit(130)
    except (UserError, RunFailure) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except OSError as error:  # of a file that no one else has spoken for
        if error.errno not in _STORAGE_FAULTS:
            raise
        print(f"error: {_storage_fault(error)}", file=sys.stderr)
        sys.exit(1)


def _storage_fault(error: OSError) -> str:
    file = f"{error.filename}: " if error.filename else ""
    return f"{file}{error.strerror}; what was written is whole: make room, and run the same command again"
