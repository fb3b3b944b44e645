"""Code shared by the Python parts of the end-to-end tests: requests to the API server of a kubeconfig, as its user."""
import base64, http.client, json, os, ssl, subprocess, tempfile


class Cluster:
    def __init__(self, kubeconfig):
        self.kubeconfig = kubeconfig
        config = json.loads(subprocess.check_output(["kubectl", "--kubeconfig", kubeconfig, "config", "view", "--raw", "-o", "json"]))
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.host, port = cluster["server"].removeprefix("https://").rsplit(":", 1)
        self.port = int(port)
        self.tls = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        with tempfile.TemporaryDirectory() as folder:
            for name, key in (("cert", "client-certificate-data"), ("key", "client-key-data")):
                with open(os.path.join(folder, name), "wb") as f:
                    os.chmod(f.name, 0o600)
                    f.write(base64.b64decode(user[key]))
            self.tls.load_cert_chain(os.path.join(folder, "cert"), os.path.join(folder, "key"))

    def connect(self, timeout):
        return http.client.HTTPSConnection(self.host, self.port, context=self.tls, timeout=timeout)
