"""The first and the last lines of a process that does one thing with a trained network, and reports what came of it."""

from __future__ import annotations

import contextlib
import os
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from overnight.config.problems import ConfigError
from overnight.protocol import ExportSpec, PredictSpec, Refused
from overnight.system import child_process
from overnight.system.errors import one_line


def main(spec: ExportSpec | PredictSpec, connection: Connection, log: Path) -> None:
    """Do what `spec` says, report over `connection`, and leave; what is said meanwhile goes to `log`."""
    with open(log, "wb", buffering=0) as file:
        child_process.begin(file.fileno(), hide_gpus=True)
    answer: object
    try:
        if isinstance(spec, ExportSpec):
            from overnight.trial.export import export

            answer = export(spec)
        else:
            from overnight.trial.predict import predict

            answer = predict(spec)
    except ConfigError as error:
        answer = Refused(tuple(error.problems))
    except BaseException as error:
        traceback.print_exc()
        answer = Refused((one_line(error),))
    with contextlib.suppress(OSError):  # whoever asked is gone
        connection.send(answer)
    os._exit(0)
