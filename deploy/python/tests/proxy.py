"""TCP proxy that cuts connections."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from urllib.parse import urlsplit


class Proxy:
    """Passes on to the gateway at ``url``, from ``self.url``.

    Each request has a connection of its own. ``cut`` is asked of each, with its number and first bytes, how many bytes of the answer pass
    before it is cut; none for all.
    """

    def __init__(self, url: str, cut: Callable[[int, bytes], int | None] = lambda *_: None) -> None:
        self._to = (urlsplit(url).hostname, urlsplit(url).port)
        self._cut = cut
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        #: First bytes of each connection.
        self.heads: list[bytes] = []
        #: Bytes that clients sent.
        self.sent = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Takes no more connections."""
        if self._listener.fileno() >= 0:
            # Without it accept goes on in its thread.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        head = client.recv(65536)
        self.sent += len(head)
        self.heads.append(head)
        left = self._cut(len(self.heads), head)
        server = socket.create_connection(self._to)
        server.sendall(head.replace(b"Connection: keep-alive", b"Connection: close", 1))
        threading.Thread(target=self._up, args=(client, server), daemon=True).start()
        try:
            while piece := server.recv(4096):
                client.sendall(piece if left is None else piece[:left])
                if left is not None:
                    left -= len(piece)
                    if left <= 0:
                        break
        except OSError:
            pass
        for end in (client, server):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        try:
            while piece := client.recv(65536):
                self.sent += len(piece)
                server.sendall(piece)
            server.shutdown(socket.SHUT_WR)
        except OSError:
            pass
