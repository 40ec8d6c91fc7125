"""Arguments that several commands share: their completion, and the study or trial that they name."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn

import click

from overnight.cli import activity
from overnight.config import shell

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from overnight.config.paths import StudyLocation
    from overnight.search.plan import Plan
    from overnight.search.record import TrialRecord
    from overnight.study.snapshot import StudyView

_MISTAKE = 2  # the exit code


def _completer(name: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Return a function of `completion`, which is imported on use."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from overnight.cli import completion

        return getattr(completion, name)(ctx, param, incomplete)

    return complete


class _Seconds(click.FloatRange):
    """A duration. click's range lets nan pass, which is neither below nor above anything."""

    name = "seconds"

    def __init__(self) -> None:
        super().__init__(min=0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        return self.fail(f"{value} is not a number of seconds.", param, ctx) if math.isnan(seconds) else seconds


SECONDS = _Seconds()


def argument(name: str, metavar: str, completes: str, **options: Any) -> Callable[[Any], Any]:
    """Declare an argument. completes: what it names, a function complete_... of `completion`."""
    return click.argument(name, metavar=metavar, shell_complete=_completer(f"complete_{completes}"), **options)


OVERRIDES = argument("overrides", "[OVERRIDE ...]", "overrides", nargs=-1)
LOCATION = argument("overrides", "[OVERRIDE ...]", "location", nargs=-1)
OPTIONAL_STUDY = argument("arguments", "[STUDY] [OVERRIDE ...]", "study", nargs=-1)
CONFIG_DIR = click.option(
    "--config-dir", metavar="DIR", help="A folder with your own configs.", shell_complete=_completer("complete_folder")
)
CONFIG_NAME = click.option(
    "--config-name",
    metavar="NAME",
    help="The primary config of your own Hydra project or LightningCLI in DIR, which is then read as it is.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def exit_with_mistakes(lines: Iterable[str]) -> NoReturn:
    """Print mistakes in the request, one a line, and exit with code 2."""
    for line in lines:
        click.echo(line, err=True)
    sys.exit(_MISTAKE)


def find_study(arguments: Iterable[str]) -> tuple[StudyLocation, StudyView, list[str]]:
    """Find the study that is named, or else the one that ran last; exit with a mistake if there is none.

    Returns:
        The location of the studies, the study, and the names of the other studies if none was named.
    """
    from overnight.config.compose import study_location
    from overnight.study import snapshot

    activity.show("reading the studies ...")
    names, overrides = split(arguments)
    if len(names) > 1:
        exit_with_mistakes([f"study: must be one name, got {', '.join(names)}"])
    location = study_location(overrides)
    view, known = snapshot.view(location, names[0] if names else None)
    if view is None:
        exit_with_mistakes([_no_such_study(location, names[0], known) if names else no_study(location)])
    return location, view, [] if names else [n for n in known if n != view.name]


def find_search(arguments: Iterable[str]) -> tuple[StudyLocation, StudyView]:
    """Find the search that is named, or else the one that ran last; exit with a mistake if there is none."""
    from overnight.search.plan import TRAIN_STUDY

    location, view, others = find_study(arguments)
    if view.name == TRAIN_STUDY and others:
        location, view, _ = find_study([others[0], *split(arguments)[1]])
    if view.name == TRAIN_STUDY:
        exit_with_mistakes(
            [
                f"study: must be a search, which has a winner, got {TRAIN_STUDY} with single configurations; "
                f"`{command('status', TRAIN_STUDY, location=location)}` shows them, and "
                f"`{command('compare', f'{TRAIN_STUDY}/0', location=location)}` one of them"
            ]
        )
    require_search("study", view.name)
    return location, view


def require_search(key: str, name: str) -> None:
    """Exit with a mistake of `key` if a study is the confirmation of a search."""
    from overnight.search.plan import CONFIRM_SUFFIX

    if name.endswith(CONFIRM_SUFFIX):
        search = name.removesuffix(CONFIRM_SUFFIX)
        exit_with_mistakes([f"{key}: must be a search, got a confirmation, {name}; name {search}"])


def find_study_or_trial(location: StudyLocation, ref: str) -> tuple[StudyView, int | None]:
    """Find the study that STUDY or STUDY/NUMBER names, and the number. Raises ConfigError if there is none."""
    from overnight.config.problems import ConfigError
    from overnight.study import snapshot

    activity.show("reading the studies ...")
    name, slash, number = ref.partition("/")
    number = number.removeprefix("trial-")
    if slash and not number.isdigit():
        raise ConfigError([f"{ref}: must be STUDY or STUDY/NUMBER, e.g. digits-mlp/7"])
    view, known = snapshot.view(location, name)
    if view is None:
        raise ConfigError([_no_such_study(location, name, known, key=ref)])
    return view, int(number) if slash else None


def find_trial(location: StudyLocation, key: str, ref: str) -> tuple[StudyView, TrialRecord]:
    """Find the trial that STUDY/NUMBER names; exit with a mistake of `key` if there is none."""
    if "/" not in ref:
        exit_with_mistakes([f"{key}: must be STUDY/NUMBER, e.g. digits-mlp/7, got {ref!r}"])
    view, number = find_study_or_trial(location, ref)
    assert number is not None
    if number >= len(view.records):
        known = f"0 to {len(view.records) - 1}" if view.records else "of which there are none yet"
        exit_with_mistakes([f"{key}: must be one of {view.name}'s trials, {known}, got {number}"])
    return view, view.records[number]


def split(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split arguments into names and overrides."""
    names: list[str] = []
    overrides: list[str] = []
    for word in arguments:
        (overrides if "=" in word else names).append(word)
    return names, overrides


def no_study(location: StudyLocation) -> str:
    remedy = _lost_studies(location) or "start one with `overnight tune`"
    return f"study: there is no study in {location.storage_description}; {remedy}"


def _lost_studies(location: StudyLocation) -> str:
    from overnight.study.lost import describe_lost

    return "; ".join(describe_lost(location))


def _no_such_study(location: StudyLocation, name: str, known: list[str], key: str = "study") -> str:
    remedy = f"it has {', '.join(known)}" if known else "it has no study yet"
    lost = _lost_studies(location)
    return f"{key}: must be a study in {location.storage_description}, got {name!r}; {lost or remedy}"


def train_winner_command(plan: Plan) -> str:
    """Return the command that trains the winner of a study again, with its config of the home."""
    from overnight.search.plan import config_dir_option

    option = f"+experiment=best_{plan.name}"
    folder = config_dir_option(plan) if plan.start.tree is None else []  # the winner's config has all of the tree
    return command("train", *folder, option, location=plan.settings.location)


def find_code(view: StudyView, config_dir: str | None = None) -> None:
    """Let this process, and those that it starts, import the code of a study. Exit if a module of it is missing.

    Args:
        config_dir: The user's config folder, if the code is located elsewhere than the study says.
    """
    from pathlib import Path

    from overnight.config.search_path import add_to_import_path
    from overnight.config.user_tree import import_folders
    from overnight.search.plan_code import find_missing

    folder = Path(config_dir).expanduser().absolute() if config_dir is not None else None
    if folder is not None and not folder.is_dir():
        exit_with_mistakes([f"--config-dir: must be a folder, and {folder} is none"])
    add_to_import_path(map(str, import_folders(folder)) if folder is not None else ())
    add_to_import_path(view.plan.start.import_path)
    if missing := find_missing(view.plan):
        exit_with_mistakes(missing)


def command(*words: str, location: StudyLocation) -> str:
    """Return an `overnight` command line that uses the same location."""
    return shell.join(["overnight", *words, *location.overrides])
