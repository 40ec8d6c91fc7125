"""The first and the last lines of a process that does one thing with a trained network, and reports what came of it."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from overnight.protocol import ExportSpec, PredictSpec, Refused
from overnight.system.parent_death import die_with_parent
from overnight.trial.errors import Mistakes, in_short


def main(spec: ExportSpec | PredictSpec, connection: Connection, log: Path) -> None:
    """Do what `spec` says, report over `connection`, and leave; what is said meanwhile goes to `log`."""
    os.setsid()
    die_with_parent()
    with open(log, "wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    answer: object
    try:
        if isinstance(spec, ExportSpec):
            from overnight.trial.export import export

            answer = export(spec)
        else:
            from overnight.trial.predict import predict

            answer = predict(spec)
    except Mistakes as mistakes:
        answer = Refused(mistakes.problems)
    except BaseException as error:
        traceback.print_exc()
        answer = Refused((in_short(error),))
    with contextlib.suppress(OSError):  # whoever asked is gone
        connection.send(answer)
    os._exit(0)
