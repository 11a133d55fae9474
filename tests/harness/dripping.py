"""A store of bundles that drips: a web server whose answers take as long as it is told."""

import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, Final

_PIECES: Final = 20
_LOOK_SECONDS: Final = 0.05


class DrippingStore:
    """Serves the bundles of a folder; it ends with `close`.

    Attributes:
        seconds: how long each file takes. It counts for what is under way, too.
    """

    def __init__(self, folder: Path, *, seconds: float = 0.0) -> None:
        self.seconds = seconds
        handler = partial(_Dripping, self, directory=str(folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._closed = threading.Event()
        threading.Thread(target=self._server.serve_forever, args=(_LOOK_SECONDS,), daemon=True).start()

    def uri(self, bundle: Path) -> str:
        """Of a bundle of the folder."""
        return f"http://127.0.0.1:{self._server.server_port}/{bundle.name}"

    def wait(self) -> None:
        """For a piece of a file."""
        began = time.monotonic()
        while time.monotonic() < began + self.seconds / _PIECES and not self._closed.wait(_LOOK_SECONDS):
            pass

    def close(self) -> None:
        """Answer no more."""
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()


class _Dripping(SimpleHTTPRequestHandler):
    def __init__(self, store: DrippingStore, *told: Any, **named: Any) -> None:
        self._store = store
        super().__init__(*told, **named)

    def copyfile(self, source: IO[bytes], outputfile: IO[bytes]) -> None:  # type: ignore[override]
        content = source.read()
        size = -(-len(content) // _PIECES) or 1
        try:
            for begin in range(0, len(content), size):
                self._store.wait()
                outputfile.write(content[begin : begin + size])
        except OSError:  # whoever asked was killed
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing."""
