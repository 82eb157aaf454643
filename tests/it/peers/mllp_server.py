"""An MLLP receiver that is not ours: framing and acknowledgement of the PyPI package `hl7`.

Writes each body that it took to STORE/<sha256>, one line "<sha256> <MSH-10> <answer>" to STORE/order for every body that
came, and prints "listening HOST:PORT". It stores what it answers with AA or CA, and only that.
"""
import argparse
import asyncio
import hashlib
import os
import ssl

import hl7
from hl7.mllp import start_hl7_server

LIMIT = 256 << 20  # longest body, in bytes

parser = argparse.ArgumentParser()
parser.add_argument("--store", required=True, help="folder for the bodies")
parser.add_argument("--port", type=int, default=0)
parser.add_argument("--answers", default="AA", help="answers in turn, the last one for ever: AE,AE,AA; 'none' says nothing, 'hang-up' closes")
parser.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
parser.add_argument("--wrong-id", action="store_true", help="answer with another MSA-2 first, then with the right one")
parser.add_argument("--say", help="these words go into MSA-3 and an ERR segment of each answer")
parser.add_argument("--certificate", help="PEM; with --key the end speaks TLS")
parser.add_argument("--key")
parser.add_argument("--client-ca", help="PEM; a client certificate is then required")
args = parser.parse_args()
answers = args.answers.split(",")
order = open(os.path.join(args.store, "order"), "a", buffering=1)


def tls():
    if not args.certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(args.certificate, args.key)
    if args.client_ca:
        context.load_verify_locations(args.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def keep(body, digest):
    path = os.path.join(args.store, digest)
    with open(path + ".part", "wb") as file:
        file.write(body)
    os.rename(path + ".part", path)


def acknowledgement(message, code, control_id=None):
    ack = message.create_ack(code)
    if control_id is not None:
        ack.assign_field(control_id, "MSA", 1, 2)
    text = str(ack)
    if args.say:
        ack.assign_field(args.say, "MSA", 1, 3)
        text = f"{str(ack).rstrip()}\rERR||PID^1^5|207^{args.say}|E||{args.say}|{args.say}|{args.say}\r"
    return text.encode("latin-1")


async def converse(reader, writer):
    try:
        while True:
            body = await reader.readblock()
            message = hl7.parse(body, encoding="latin-1")
            control_id = str(message.segment("MSH")[10])
            code = answers.pop(0) if len(answers) > 1 else answers[0]
            digest = hashlib.sha256(body).hexdigest()
            if code in ("AA", "CA"):
                keep(body, digest)
            order.write(f"{digest} {control_id} {code}\n")
            if args.delay:
                await asyncio.sleep(args.delay)
            if code == "hang-up":
                return
            if code == "none":
                continue
            if args.wrong_id:
                writer.writeblock(acknowledgement(message, code, "SOMEBODY-ELSE"))
            writer.writeblock(acknowledgement(message, code))
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    server = await start_hl7_server(converse, host="127.0.0.1", port=args.port, limit=LIMIT, ssl=tls())
    print("listening 127.0.0.1:%d" % server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


asyncio.run(main())
