"""A data set of pictures that is downloaded like MNIST, and its server."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
from torchvision import datasets

from overnight.data.images import MNIST

MIRROR = "OVERNIGHT_TEST_MIRROR"  # the variable with the address of the server


def archives() -> dict[str, bytes]:
    """Return the files of 300 and 50 pictures of noise in MNIST's format, by file name."""
    rng, found = np.random.default_rng(0), {}
    for part, count in (("train", 300), ("t10k", 50)):
        for kind, array in (
            ("images-idx3", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)),
            ("labels-idx1", rng.integers(0, 10, count, dtype=np.uint8)),
        ):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            found[f"{part}-{kind}-ubyte.gz"] = gzip.compress(head + array.tobytes(), mtime=0)
    return found


class Fetched(datasets.MNIST):
    mirrors: ClassVar = [os.environ.get(MIRROR, "http://127.0.0.1:9/")]
    resources: ClassVar = [(name, hashlib.md5(data).hexdigest()) for name, data in archives().items()]


class Pictures(MNIST):
    validation_rows = 100
    dataset = Fetched


@contextmanager
def server(chunk_s: float = 0.0, broken: bool = False) -> Iterator[str]:
    """Serve the data set on this machine.

    Args:
        chunk_s: Pause after every 32 KiB, in seconds.
        broken: Change one byte.
    """
    files = archives()
    if broken:
        files = {name: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:] for name, data in files.items()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = files[self.path.strip("/")]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with suppress(ConnectionError):  # torchvision first requests the address only
                for start in range(0, len(data), 32 * 1024):
                    self.wfile.write(data[start : start + 32 * 1024])
                    time.sleep(chunk_s)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()
