"""An MLLP sender that is not ours: framing of the PyPI package `hl7`. Sends files and checks each acknowledgement.

Prints "<file> <MSA-1>" for each, then "sent N". Ends with 1 when an answer is missing, is not one of those expected, or its MSA-2 is not
the message's MSH-10.
"""
import argparse
import asyncio
import pathlib
import ssl
import sys

import hl7
from hl7.mllp import open_hl7_connection

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--folder", required=True, help="every *.hl7 in it is sent, by name")
parser.add_argument("--expect", default="AA,CA", help="answers that are good")
parser.add_argument("--connections", type=int, default=1, help="the files are dealt out to so many connections")
parser.add_argument("--pipelined", action="store_true", help="send all before the first acknowledgement is read")
parser.add_argument("--timeout", type=float, default=20.0)
parser.add_argument("--ca", help="PEM; speaks TLS and checks the server by it")
parser.add_argument("--certificate")
parser.add_argument("--key")
args = parser.parse_args()


def tls():
    if not args.ca:
        return None
    context = ssl.create_default_context(cafile=args.ca)
    if args.certificate:
        context.load_cert_chain(args.certificate, args.key)
    return context


def control_id(body):
    """MSH-10 with the message's own separator, as it stands."""
    line = body.replace(b"\n", b"\r").split(b"\r")[0]
    fields = line[line.index(b"MSH"):].split(line[3:4])
    return fields[9].decode("latin-1") if len(fields) > 9 else ""


def check(file, answer):
    msa, sent = answer.segment("MSA"), control_id(file.read_bytes())
    print(file.name, msa[1], flush=True)
    if str(msa[1]) not in args.expect.split(","):
        sys.exit(f"{file.name}: answered {msa[1]}, expected one of {args.expect}")
    if str(msa[2]) != sent:
        sys.exit(f"{file.name}: MSA-2 is {msa[2]}, MSH-10 is {sent}")


async def send(files):
    extra = {"ssl": tls(), "server_hostname": "localhost"} if args.ca else {}
    reader, writer = await open_hl7_connection("127.0.0.1", args.port, limit=1 << 20, **extra)
    async def write(file):
        writer.writeblock(file.read_bytes())
        await writer.drain()

    if args.pipelined:
        for file in files:
            await write(file)
    for file in files:
        if not args.pipelined:
            await write(file)
        check(file, hl7.parse(await asyncio.wait_for(reader.readblock(), args.timeout), encoding="latin-1"))
    writer.close()


async def main():
    files = sorted(pathlib.Path(args.folder).glob("*.hl7"))
    await asyncio.gather(*(send(files[n :: args.connections]) for n in range(args.connections)))
    print("sent", len(files), flush=True)


asyncio.run(main())
