"""A server that answers whatever comes with the same bytes: what is left is the generator's cost.

It ends with its standard input. `python echo_server.py PORT`.
"""

import select
import socket
import sys

_BODY = b'{"status":"queued","event_id":"0193a5e2-7c1f-7b3a-9d53-3f2b8f1c6d10"}'
_ANSWER = b"HTTP/1.1 202 Accepted\r\ncontent-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
_READ_BYTES = 1 << 16


def main(port: int) -> None:
    """Answer every read on every connection, each of which is taken for a whole request."""
    with socket.create_server(("127.0.0.1", port), backlog=256) as listener, select.epoll() as poll:
        poll.register(listener, select.EPOLLIN)
        poll.register(sys.stdin, select.EPOLLIN | select.EPOLLHUP)
        clients: dict[int, socket.socket] = {}
        while True:
            for descriptor, _ in poll.poll():
                client = clients.get(descriptor)
                if client is not None:
                    if client.recv(_READ_BYTES):
                        client.send(_ANSWER)
                    else:
                        clients.pop(descriptor).close()
                elif descriptor == listener.fileno():
                    client, _ = listener.accept()
                    clients[client.fileno()] = client
                    poll.register(client, select.EPOLLIN)
                else:
                    return


if __name__ == "__main__":
    main(int(sys.argv[1]))
