"""What systemd does for a service, as far as sd_notify(3) and sd_listen_fds(3) go: hears what it is told, keeps file descriptors,
hands over sockets. Starts one program and ends with it.

    service_manager.py [--watchdog USEC] [--socket NAME=ADDRESS:PORT]... FOLDER -- PROGRAM ARGUMENT...

Prints a line for each message ("told READY=1 STATUS=..."). SIGUSR1 stops the program ("down"), SIGUSR2 starts it again ("started")
with all that it left; SIGHUP goes to it; SIGTERM stops it and ends with its code.
"""
import argparse
import array
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading

parser = argparse.ArgumentParser()
parser.add_argument("--watchdog")
parser.add_argument("--socket", action="append", default=[])
parser.add_argument("folder")
parser.add_argument("command", nargs=argparse.REMAINDER)
options = parser.parse_args()
command = [part for part in options.command if part != "--"]

notify = os.path.join(options.folder, "notify.sock")
hears = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
hears.bind(notify)
units, stored = [], []


def say(text):
    print(text, flush=True)


def listen():
    while True:
        message, ancillary, _, _ = hears.recvmsg(4096, socket.CMSG_SPACE(64))
        lines = message.decode().split("\n")
        name = next((line[7:] for line in lines if line.startswith("FDNAME=")), "stored")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                stored.extend((name, number) for number in array.array("i", data))
        if "FDSTOREREMOVE=1" in lines:
            for entry in [entry for entry in stored if entry[0] == name]:
                stored.remove(entry)
                os.close(entry[1])
        say("told " + " ".join(line for line in lines if line))


def start():
    given = units + stored
    high = [fcntl.fcntl(number, fcntl.F_DUPFD, 200) for _, number in given]

    def place():
        for index, number in enumerate(high):
            os.dup2(number, 3 + index)

    environment = dict(os.environ, NOTIFY_SOCKET=notify)
    if given:
        environment.update(LISTEN_FDS=str(len(given)), LISTEN_FDNAMES=":".join(name for name, _ in given))
    if options.watchdog:
        environment["WATCHDOG_USEC"] = options.watchdog
    # The shell becomes the program, and so knows its process id.
    shell = ["sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh"] + command
    child = subprocess.Popen(shell, env=environment, pass_fds=range(3, 3 + len(given)), preexec_fn=place)
    for number in high:
        os.close(number)
    say(f"started {child.pid}")
    return child


for text in options.socket:
    name, _, address = text.partition("=")
    host, _, port = address.rpartition(":")
    made = socket.create_server((host, int(port)), backlog=16)
    units.append((name, made.detach()))

signals = {signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD}
signal.pthread_sigmask(signal.SIG_BLOCK, signals)
threading.Thread(target=listen, daemon=True).start()
signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
# The child must not inherit blocked signals; from here on each is taken in turn.
for number in signals:
    signal.signal(number, lambda *_: None)
reader, writer = os.pipe()
os.set_blocking(writer, False)
signal.set_wakeup_fd(writer)
child = start()
stopping = False
while True:
    number = os.read(reader, 1)[0]
    if number == signal.SIGUSR2:
        stopping = False
        child = start()
    elif number in (signal.SIGUSR1, signal.SIGTERM):
        stopping = True
        child.send_signal(signal.SIGTERM)
        code = child.wait()
        say("down")
        if number == signal.SIGTERM:
            sys.exit(code)
    elif number == signal.SIGHUP:
        child.send_signal(signal.SIGHUP)
    elif not stopping and child.poll() is not None:
        say(f"ended {child.returncode}")
        sys.exit(child.returncode & 0xFF)
