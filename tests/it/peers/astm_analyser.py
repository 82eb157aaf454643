"""A laboratory analyser on a line: labmcp's simulator of one, which damages frames on their way as it is told.

  astm_analyser.py --to HOST:PORT        it dials
  astm_analyser.py --listen              it is dialled; prints "listening HOST:PORT"
  astm_analyser.py --serial PATH         it is at the other end of a pseudo-terminal

Sends its two results (a blood count of 26 records, one of them in two frames, and a metabolic panel) --times over, corrupts the frames
that --corrupt names (message:frame) once each, and with --deaf damages one frame again and again, so that it gives up after six refusals.
Prints one JSON object: the messages as they were sent ("sent"), how many it believes were taken ("taken"), the refusals ("naks").
"""
import argparse
import json
import os
import socket
import termios
import time
import tty

from labmcp_astm_lis.simulator import ASTMAnalyzerSimulator, default_messages

parser = argparse.ArgumentParser()
parser.add_argument("--to")
parser.add_argument("--listen", action="store_true")
parser.add_argument("--serial")
parser.add_argument("--times", type=int, default=1)
parser.add_argument("--corrupt", nargs="*", default=["0:6"])
parser.add_argument("--deaf", action="store_true")
parser.add_argument("--patience", type=float, default=60)
arguments = parser.parse_args()


class Analyser(ASTMAnalyzerSimulator):
    """Damages the frames of --corrupt; with --deaf the third one of the first message each time."""

    def _send(self, retransmission=False):
        if arguments.deaf and (self._msg, self._frame) == (0, 2):
            self._corrupted.discard((0, 2))
            self.corrupt.add((0, 2))
        return super()._send(retransmission)


def line():
    if arguments.serial:
        port = os.open(arguments.serial, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(port, termios.TCSANOW)
        return (lambda: os.read(port, 4096)), (lambda data: os.write(port, data))
    if arguments.listen:
        listener = socket.create_server(("127.0.0.1", 0))
        print("listening %s:%s" % listener.getsockname(), flush=True)
        stream, _ = listener.accept()
    else:
        host, port = arguments.to.rsplit(":", 1)
        stream = socket.create_connection((host, int(port)), timeout=10)
    stream.settimeout(arguments.patience)
    return (lambda: stream.recv(4096)), stream.sendall


messages = []
for turn in range(arguments.times):
    for message in default_messages():
        # Each has a time of its own: two with the same bytes would be one message sent twice.
        stamp = message[0].rsplit("|", 1)[1]
        messages.append([message[0].replace(stamp, str(int(stamp) + turn * 3)), *message[1:]])
corrupt = tuple(tuple(int(part) for part in pair.split(":")) for pair in arguments.corrupt)
analyser = Analyser(messages, gap_s=0.01, corrupt=corrupt)
receive, send = line()
analyser.attach(send)
end = time.monotonic() + arguments.patience
while not analyser.done and time.monotonic() < end:
    data = receive()
    if not data:
        break
    answer = analyser.handle_bytes(data)
    if answer:
        send(answer)
analyser.stop()
sent = ["".join(record + "\r" for record in message) for message in messages]
print(json.dumps({"sent": sent, "taken": analyser.messages_sent, "naks": analyser.naks_received}), flush=True)
