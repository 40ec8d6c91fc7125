"""The data of a trial as an input of its run in MLflow, known by name, source and digest. The data is not read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from overnight.config.values import fingerprint
from overnight.config.values import to_json as values_to_json

# Arguments that change neither rows nor targets.
_NOT_DATA = ("batch_size", "eval_batch_size", "num_workers", "pin_memory", "persistent_workers", "root", "cache_dir")
_MAX_NAME, _MAX_SOURCE = 500, 60_000  # characters; MLflow's limits are 500 and 65,535


class DatasetFacts(NamedTuple):
    """What a run says of its data.

    Attributes:
        digest: Of the class and of the arguments that choose, split and transform the rows.
        source: The class and its arguments, as JSON.
    """

    name: str
    digest: str
    source: str


def dataset_of(config: Mapping[str, Any], option: str | None) -> DatasetFacts:
    """Return the facts of a trial's configuration. option: of the config group `data`; None for the class's name."""
    data = {key: value for key, value in config["data"].items() if key not in _NOT_DATA}
    digest = hashlib.sha256(fingerprint(data).encode()).hexdigest()[:8]
    target, arguments = data.pop("_target_"), values_to_json(data)
    source = json.dumps({"class": target, "arguments": arguments}, default=str)
    name = option or str(target).rpartition(".")[2]
    return DatasetFacts(name[:_MAX_NAME], digest, source[:_MAX_SOURCE])


def as_input(facts: DatasetFacts) -> Any:
    """Return the facts as MLflow's entity."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(facts.name, facts.digest, "code", facts.source)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
