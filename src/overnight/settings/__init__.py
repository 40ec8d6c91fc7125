"""What a person may turn: Hydra composes, this room checks, the rest of the project gets frozen dataclasses.

The only room that knows OmegaConf.
"""

from overnight.paths import Place
from overnight.settings.composing import Draft, compose, group_options, place
from overnight.settings.rules import ConfigError, nearest
from overnight.settings.sections import (
    COMPONENTS,
    OBJECTIVES,
    SEARCHABLE,
    CheckpointSettings,
    ConfirmSettings,
    LauncherSettings,
    NotifySettings,
    PictureSettings,
    PrunerSettings,
    SamplerSettings,
    Settings,
    StorageSettings,
    StudySettings,
    TerminatorSettings,
    TrackingSettings,
    TrainerSettings,
    TrialSettings,
    WarmStart,
    from_json,
    to_json,
)
from overnight.settings.trees import config_text, has_key, kind_problem, look_up, with_values

__all__ = [
    "COMPONENTS",
    "OBJECTIVES",
    "SEARCHABLE",
    "CheckpointSettings",
    "ConfigError",
    "ConfirmSettings",
    "Draft",
    "LauncherSettings",
    "NotifySettings",
    "PictureSettings",
    "Place",
    "PrunerSettings",
    "SamplerSettings",
    "Settings",
    "StorageSettings",
    "StudySettings",
    "TerminatorSettings",
    "TrackingSettings",
    "TrainerSettings",
    "TrialSettings",
    "WarmStart",
    "compose",
    "config_text",
    "from_json",
    "group_options",
    "has_key",
    "kind_problem",
    "look_up",
    "nearest",
    "place",
    "to_json",
    "with_values",
]
