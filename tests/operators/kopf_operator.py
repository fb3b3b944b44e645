"""An operator on kopf: keeps a Fleet's ConfigMaps, holds it with a finalizer, and answers its two webhooks.

kopf_operator.py CERT_DIR PORT: the kubeconfig is $KUBECONFIG's.
"""
import sys

import kopf
import kubernetes

FLEETS = ("trial.example.com", "v1", "fleets")


@kopf.on.startup()
def configure(settings, **_):
    certificates, port = sys.argv[1:3]
    # The configurations are the test's own: the same for all three operators.
    settings.admission.server = kopf.WebhookServer(addr="127.0.0.1", port=int(port), certfile=f"{certificates}/tls.crt", pkeyfile=f"{certificates}/tls.key")
    settings.persistence.finalizer = "trial.example.com/operator"
    settings.posting.enabled = False


@kopf.on.login()
def login(**_):
    return kopf.login_with_kubeconfig(**_)


@kopf.on.create(*FLEETS)
@kopf.on.update(*FLEETS, field="spec")
def keep(spec, name, namespace, body, patch, meta, **_):
    core, boats = kubernetes.client.CoreV1Api(), spec["boats"]
    for n in range(boats):
        boat = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"{name}-{n}", "labels": {"fleet": name}}}
        kopf.append_owner_reference(boat, owner=body)
        try:
            core.create_namespaced_config_map(namespace, boat)
        except kubernetes.client.ApiException as error:
            if error.status != 409:
                raise
    for boat in core.list_namespaced_config_map(namespace, label_selector=f"fleet={name}").items:
        if int(boat.metadata.name[len(name) + 1:]) >= boats:
            core.delete_namespaced_config_map(boat.metadata.name, namespace)
    patch.status["boats"] = boats
    patch.status["observedGeneration"] = meta["generation"]


@kopf.on.delete(*FLEETS)
def farewell(name, namespace, **_):
    try:
        kubernetes.client.CoreV1Api().create_namespaced_config_map(namespace, {"metadata": {"name": f"farewell-{name}"}})
    except kubernetes.client.ApiException as error:
        if error.status != 409:
            raise


@kopf.on.mutate(*FLEETS, id="mutate")
def harbour(spec, patch, **_):
    if "harbour" not in spec:
        patch.spec["harbour"] = "home"


@kopf.on.validate(*FLEETS, id="validate")
def few(spec, **_):
    if spec.get("boats", 0) > 5:
        raise kopf.AdmissionError("no more than five boats", code=403)


if __name__ == "__main__":
    kubernetes.config.load_kube_config()
    kopf.run(clusterwide=True, standalone=True)
