"""extender.py: a scheduler extender. Of its nodes only coracle-2 has a seat, and it lets victims be evicted for one. Prints its port."""
import http.server, json


class Extender(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = json.dumps(self.filter(asked["NodeNames"]) if self.path == "/filter" else self.preempt(asked["NodeNameToMetaVictims"])).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    @staticmethod
    def filter(nodes):
        return {"NodeNames": [name for name in nodes if name == "coracle-2"], "FailedNodes": {name: "no seat is free" for name in nodes if name != "coracle-2"}}

    @staticmethod
    def preempt(victims):
        return {"NodeNameToMetaVictims": {node: pods for node, pods in victims.items() if node == "coracle-2"}}

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Extender)
print(server.server_address[1], flush=True)
server.serve_forever()
