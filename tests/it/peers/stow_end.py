"""A DICOMweb end (STOW-RS) that answers as a script says, over HTTP/1.1 (Python's http.server) and HTTP/2 (the package h2).

Stores the part of each request as STORE/<sha256>, one JSON line about every request in STORE/requests (path, headers, sha256, http,
connection), and prints "listening HOST:PORT". Answers in turn, the last one for ever:
    STATUS                no body
    STATUS:stored         ReferencedSOPSequence names the instance; STATUS:stored=B007 with a warning reason
    STATUS:failed=A700    FailedSOPSequence names it
    STATUS:html           a page for people that quotes a patient
"""
import argparse
import hashlib
import http.server
import json
import os
import ssl
import struct
import sys
import threading

import h2.config
import h2.connection
import h2.events

parser = argparse.ArgumentParser()
parser.add_argument("--store", required=True)
parser.add_argument("--answers", default="200:stored")
parser.add_argument("--page", default="Probe^Paula", help="what the page says")
parser.add_argument("--xml", action="store_true", help="answers in application/dicom+xml")
parser.add_argument("--retry-after")
parser.add_argument("--together", type=int, default=1, help="answers nobody before so many requests are there at once")
parser.add_argument("--http2", action="store_true", help="speaks HTTP/2 without being asked (prior knowledge)")
parser.add_argument("--alpn", default="h2,http/1.1")
parser.add_argument("--token", help="bearer token; 401 without it")
parser.add_argument("--certificate")
parser.add_argument("--key")
parser.add_argument("--client-ca", help="PEM; a client certificate is then required")
args = parser.parse_args()
answers = args.answers.split(",")
turn = threading.Lock()
gathered = threading.Barrier(args.together)
requests = open(os.path.join(args.store, "requests"), "a", buffering=1)


def part(headers, body):
    """The only part of the body, taken apart by hand."""
    kind, *parameters = [piece.strip() for piece in headers["content-type"].split(";")]
    named = dict(parameter.split("=", 1) for parameter in parameters)
    assert kind == "multipart/related" and named["type"] == '"application/dicom"', headers
    assert int(headers["content-length"]) == len(body), headers
    boundary = named["boundary"].encode()
    begin = b"--" + boundary + b"\r\nContent-Type: application/dicom\r\n\r\n"
    end = b"\r\n--" + boundary + b"--\r\n"
    assert body.startswith(begin) and body.endswith(end) and body.count(boundary) == 2, body[:200]
    return body[len(begin):-len(end)]


def instance_uid(instance):
    assert instance[128:132] == b"DICM"
    at = instance.index(b"\x02\x00\x03\x00UI")
    length, = struct.unpack_from("<H", instance, at + 6)
    return instance[at + 8:at + 8 + length].rstrip(b"\0").decode()


def attribute(tag, vr, value):
    return '<DicomAttribute tag="%s" vr="%s"><Value number="1">%s</Value></DicomAttribute>' % (tag, vr, value)


def result(sequence, code_tag, uid, code):
    """The data set that says so, in JSON or XML."""
    if args.xml:
        item = attribute("00081155", "UI", uid) + (attribute(code_tag, "US", int(code, 16)) if code else "")
        body = '<?xml version="1.0"?><NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM"><DicomAttribute tag="%s" vr="SQ"><Item number="1">%s</Item></DicomAttribute></NativeDicomModel>' % (sequence, item)
        return "application/dicom+xml", body.encode()
    item = {"00081155": {"vr": "UI", "Value": [uid]}}
    if code:
        item[code_tag] = {"vr": "US", "Value": [int(code, 16)]}
    return "application/dicom+json", json.dumps({sequence: {"vr": "SQ", "Value": [item]}}).encode()


def respond(path, headers, body, version, connection):
    """Status, headers and body of the answer."""
    try:
        gathered.wait(timeout=5)
    except threading.BrokenBarrierError:
        return 500, {"content-length": "0"}, b""
    instance = part(headers, body)
    digest = hashlib.sha256(instance).hexdigest()
    with turn:
        said = answers.pop(0) if len(answers) > 1 else answers[0]
        if args.token and headers.get("authorization") != "Bearer " + args.token:
            said = "401"
        with open(os.path.join(args.store, digest), "wb") as file:
            file.write(instance)
        about = {"path": path, "headers": headers, "sha256": digest, "http": version, "connection": connection}
        requests.write(json.dumps(about) + "\n")
    status, _, what = said.partition(":")
    what, _, code = what.partition("=")
    media, content = "text/html", b"<html>%s</html>" % args.page.encode() if what == "html" else b""
    if what == "stored":
        media, content = result("00081199", "00081196", instance_uid(instance), code)
    elif what == "failed":
        media, content = result("00081198", "00081197", instance_uid(instance), code)
    back = {"content-type": media, "content-length": str(len(content))}
    if args.retry_after and int(status) >= 400:
        back["retry-after"] = args.retry_after
    return int(status), back, content


class One(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers["content-length"]))
        status, back, content = respond(self.path, headers, body, "1.1", self.client_address[1])
        self.send_response(status)
        for name, value in back.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class Two:
    """One HTTP/2 connection; a thread for each request, so that they can wait for each other."""

    def __init__(self, socket, address):
        self.socket, self.address, self.lock = socket, address, threading.Lock()
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.streams = {}
        with self.lock:
            self.connection.initiate_connection()
            self.flush()
        while data := self.socket.recv(65536):
            with self.lock:
                for event in self.connection.receive_data(data):
                    self.on(event)
                self.flush()

    def flush(self):
        self.socket.sendall(self.connection.data_to_send())

    def on(self, event):
        if isinstance(event, h2.events.RequestReceived):
            self.streams[event.stream_id] = (dict(event.headers), bytearray())
        elif isinstance(event, h2.events.DataReceived):
            self.streams[event.stream_id][1].extend(event.data)
            self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            threading.Thread(target=self.answer, args=(event.stream_id,), daemon=True).start()

    def answer(self, stream):
        headers, body = self.streams.pop(stream)
        status, back, content = respond(headers[":path"], headers, bytes(body), "2", self.address[1])
        with self.lock:
            self.connection.send_headers(stream, [(":status", str(status)), *back.items()])
            self.connection.send_data(stream, content, end_stream=True)
            self.flush()


class Server(http.server.ThreadingHTTPServer):
    def finish_request(self, request, client_address):
        alpn = None
        if args.certificate:
            request.do_handshake()
            alpn = request.selected_alpn_protocol()
        (Two if args.http2 or alpn == "h2" else lambda *a: One(*a, self))(request, client_address)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # a peer that hangs up is no news


server = Server(("127.0.0.1", 0), One)
if args.certificate:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(args.certificate, args.key)
    context.set_alpn_protocols(args.alpn.split(","))
    if args.client_ca:
        context.load_verify_locations(args.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print("listening 127.0.0.1:%d" % server.server_address[1], flush=True)
server.serve_forever()
