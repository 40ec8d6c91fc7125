"""The `overnight` command. Modules are imported when a command needs them, so that --help answers at once."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import subprocess
import sys
import threading
from typing import Any, NoReturn

import click

from overnight.cli import activity, results, run, studies
from overnight.cli.arguments import exit_with_mistakes
from overnight.system import shadowing

_FAILED = 1
_INTERRUPTED = 130
_SECTIONS = {
    "Run a study": run.COMMANDS,
    "Read the result": results.COMMANDS,
    "Manage studies": studies.COMMANDS,
}


class _GroupWithSections(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        activity.show("importing ...")  # before a command imports anything
        return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        width = max(map(len, self.commands))
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([((c.name or "").ljust(width), c.get_short_help_str(100)) for c in commands])


@click.group(cls=_GroupWithSections, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="overnight")
def cli() -> None:
    """Launch a hyperparameter study in the evening, read the answer in the morning.

    STUDY is the name of a study, and STUDY/NUMBER one of its trials. OVERRIDE is KEY=VALUE in Hydra's syntax. A value
    such as relu,gelu or 'interval(0.0,0.5)' is a range to search.

    \b
    Examples:
      overnight tune model=mlp data=digits
      overnight tune model.dropout='interval(0.0,0.5)' study.trials=50
      overnight report
    """


for _commands in _SECTIONS.values():
    for _command in _commands:
        cli.add_command(_command)


def main() -> None:
    """Run a command.

    Exit codes: 0 success, 1 failure, 2 a mistake in the request, 130 Ctrl-C, 143 SIGTERM.
    """
    if not __debug__:
        _restart_with_assertions()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may lack characters that a report has
    if "_OVERNIGHT_COMPLETE" not in os.environ:
        shadowing.exit_if_any()
    with contextlib.suppress(FileNotFoundError):  # a deleted folder has no completions
        sys.path.insert(0, os.getcwd())  # the user's modules, as with `python -m`
    # Without a last garbage collection, which takes 0.3 s after a study of a thousand trials was read.
    atexit.register(gc.freeze)
    with activity.on_terminal():
        _run()


def _restart_with_assertions() -> NoReturn:
    """Restart without `python -O`: Hydra's parser reads ahead within assertions, and misreads values without them."""
    os.environ.pop("PYTHONOPTIMIZE", None)
    flags = [flag for flag in subprocess._args_from_interpreter_flags() if flag.strip("O") != "-"]  # type: ignore[attr-defined]
    os.execv(sys.executable, [sys.executable, *flags, "-m", "overnight", *sys.argv[1:]])


def _run() -> NoReturn:
    try:
        if "_OVERNIGHT_COMPLETE" in os.environ:
            from overnight.cli import completion

            completion.install()
        sys.exit(cli.main(standalone_mode=False))
    except click.NoSuchOption as error:
        error.show()
        if key := _setting_of(error.option_name):
            click.echo(f"Settings are overrides: {key}=VALUE", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        if any(not t.daemon for t in threading.enumerate() if t is not threading.main_thread()):
            click.echo("interrupted; an import ends first ...", err=True)
        sys.exit(_INTERRUPTED)
    except Exception as error:
        _exit_with_error(error)


def _setting_of(option: str) -> str | None:
    """Return the setting that someone who typed an option may have meant: study.trials for --trials."""
    from overnight.config.compose import compose
    from overnight.config.trees import keys_of

    name = option.lstrip("-").replace("-", "_")
    keys = [key for key in keys_of(compose(["search=none"]).config) if key == name or key.endswith(f".{name}")]
    return min(keys, key=lambda key: key.count("."), default=None)


def _exit_with_error(error: Exception) -> NoReturn:
    """Print what went wrong in one line for each mistake, and exit. No user sees a traceback."""
    from overnight.config.problems import ConfigError

    if isinstance(error, ConfigError):
        exit_with_mistakes(error.problems)
    if isinstance(error, RuntimeError):  # the imports take half a second
        from overnight.study.storage.database import DiskFull
        from overnight.study.storage.lock import StudyInUse
        from overnight.study.storage.outage import Unreachable
        from overnight.system.forkserver import ImportsFailed

        if isinstance(error, DiskFull | ImportsFailed | Unreachable):
            click.echo(str(error), err=True)
            sys.exit(_FAILED)
        if isinstance(error, StudyInUse):
            exit_with_mistakes([str(error)])
        if "table schema" in str(error):  # Optuna's error for the tables of another Optuna version
            exit_with_mistakes([f"storage: {' '.join(str(error).split())}"])
    from overnight.cli import unexpected

    click.echo(unexpected.report(error), err=True)
    sys.exit(_FAILED)
