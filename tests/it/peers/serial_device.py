"""A device on a serial line, with pyserial: it says a line again and again, or answers what it is asked.

  serial_device.py PORT [--baud N] [--say TEXT] [--every SECONDS] [--times N]

TEXT may have \\r, \\n and \\x02. It says "ready" when the port is open, and "said N" when it is through.
"""
import argparse
import time

import serial

arguments = argparse.ArgumentParser()
arguments.add_argument("port")
arguments.add_argument("--baud", type=int, default=9600)
arguments.add_argument("--say", default="SPO2=098 HR=061\\r\\n")
arguments.add_argument("--every", type=float, default=0.1)
arguments.add_argument("--times", type=int, default=1 << 30)
given = arguments.parse_args()

line = given.say.encode().decode("unicode_escape").encode("latin-1")
with serial.Serial(given.port, given.baud, bytesize=8, parity="N", stopbits=1, write_timeout=5) as port:
    print("ready", flush=True)
    for _ in range(given.times):
        port.write(line)
        port.flush()
        time.sleep(given.every)
    print(f"said {given.times}", flush=True)
    # The port stays open until we are ended: to close it would be to pull the cable.
    time.sleep(3600)
