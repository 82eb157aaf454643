"""An HTTP(S) end made of Python's own http.server and ssl.

Stores each body that it answers with 2xx as STORE/<sha256>, one JSON line about every request in STORE/requests (method, path, headers,
sha256, status), and prints "listening HOST:PORT".
"""
import argparse
import hashlib
import http.server
import json
import os
import ssl
import threading

parser = argparse.ArgumentParser()
parser.add_argument("--store", required=True)
parser.add_argument("--port", type=int, default=0)
parser.add_argument("--statuses", default="201", help="statuses in turn, the last one for ever: 503,429,201; 0 closes without an answer")
parser.add_argument("--retry-after", help="value of the header Retry-After with 429 and 503")
parser.add_argument("--token", help="bearer token; 401 without it")
parser.add_argument("--certificate")
parser.add_argument("--key")
parser.add_argument("--client-ca", help="PEM; a client certificate is then required")
args = parser.parse_args()
statuses = [int(status) for status in args.statuses.split(",")]
turn = threading.Lock()
requests = open(os.path.join(args.store, "requests"), "a", buffering=1)


class End(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_POST(self):
        body = self.body()
        digest = hashlib.sha256(body).hexdigest()
        with turn:
            status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
            if args.token and self.headers.get("Authorization") != "Bearer " + args.token:
                status = 401
            if 200 <= status < 300:
                path = os.path.join(args.store, digest)
                with open(path + ".part", "wb") as file:
                    file.write(body)
                os.rename(path + ".part", path)
            about = {"method": self.command, "path": self.path, "headers": dict(self.headers), "sha256": digest, "status": status}
            requests.write(json.dumps(about) + "\n")
        if status == 0:
            self.close_connection = True
            return
        self.send_response(status)
        if args.retry_after and status in (429, 503):
            self.send_header("Retry-After", args.retry_after)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_PUT = do_POST

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        pass  # a peer that hangs up is no news


server = Server(("127.0.0.1", args.port), End)
if args.certificate:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(args.certificate, args.key)
    if args.client_ca:
        context.load_verify_locations(args.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
print("listening 127.0.0.1:%d" % server.server_address[1], flush=True)
server.serve_forever()
