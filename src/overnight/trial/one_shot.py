"""A process that exports a trained network, or predicts with it, and reports the result."""

from __future__ import annotations

import contextlib
import os
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from overnight.config.problems import ConfigError
from overnight.protocol import Exported, ExportSpec, Failure, Predictions, PredictSpec
from overnight.system import child_process
from overnight.system.errors import one_line


def main(spec: ExportSpec | PredictSpec, connection: Connection, log: Path) -> None:
    """Execute `spec`, send the result and exit. What the process prints goes to `log`."""
    with open(log, "wb", buffering=0) as file:
        child_process.begin(file.fileno(), hide_gpus=True)
    result: Exported | Predictions | Failure
    try:
        if isinstance(spec, ExportSpec):
            from overnight.trial.export import export

            result = export(spec)
        else:
            from overnight.trial.predict import predict

            result = predict(spec)
    except ConfigError as error:
        result = Failure(tuple(error.problems))
    except BaseException as error:
        traceback.print_exc()
        result = Failure((one_line(error),))
    with contextlib.suppress(OSError):  # the parent is gone
        connection.send(result)
    os._exit(0)
