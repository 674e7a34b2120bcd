"""Checks of deploy/kubernetes, deploy/compose and the queries in them, without a cluster or a container engine: what kubectl and docker
compose make of the files, against the schemas of Kubernetes 1.37, of KEDA 2.16 and of compose, and against each other.

    .vidi/deploy/bin/python tests/manifests.py        # deploy/setup.sh test installs what it needs

Prints a line for each thing checked; an error names what is wrong, and ends it with status 1.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from os.path import relpath
from pathlib import Path

import kubernetes_validate
import promql_parser
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject

ROOT = Path(__file__).resolve().parent.parent
KUBERNETES = ROOT / "deploy/kubernetes"
TOOLS = Path(sys.executable).parent
STAGES = ["decode", "vision", "audio", "fuse", "llm"]


def fail(text):
    sys.exit(f"error: {text}")


def need(condition, text):
    if not condition:
        fail(text)


def run(*args, env=None):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, env=env)
    # The package of docker-compose ends with 0 whatever it says.
    need(done.returncode == 0 and done.stdout, f"{' '.join(map(str, args))}: {done.stderr}")
    return done.stdout


def parsed(query, of):
    try:
        promql_parser.parse(query)
    except ValueError as error:
        fail(f"{of}: {query}: {error}")


def unknown(given, taken, where=""):
    """Keys that were given and that the schema has not taken: it would ignore them."""
    if isinstance(given, dict) and isinstance(taken, dict):
        for key, value in given.items():
            if key not in taken:
                yield f"{where}.{key}"
            else:
                yield from unknown(value, taken[key], f"{where}.{key}")
    if isinstance(given, list) and isinstance(taken, list):
        for at, (one, other) in enumerate(zip(given, taken)):
            yield from unknown(one, other, f"{where}[{at}]")


def rendered(directory):
    return [one for one in yaml.safe_load_all(run(TOOLS / "kubectl", "kustomize", directory)) if one]


def schemas(objects, of):
    """Every object against the schema of its kind."""
    for one in objects:
        what = f"{of}: {one['kind']} {one['metadata']['name']}"
        if one["apiVersion"].startswith("keda.sh/"):
            try:
                taken = ScaledObject.model_validate(one).model_dump(mode="json", by_alias=True, exclude_unset=True)
            except ValueError as error:
                fail(f"{what}: {error}")
            lost = list(unknown(one, taken))
            need(not lost, f"{what}: {lost} are no keys of a ScaledObject")
        else:
            try:
                kubernetes_validate.validate(one, "1.37", strict=True)
            except Exception as error:  # one class for each version
                fail(f"{what}: {error}")


def references(objects, of, gpu, gateway=("client.password",)):
    """What objects say of each other; `gateway`: the passwords that it is handed."""
    named = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    need(len(named) == len(objects), f"{of}: two objects have one name")
    deployments = {name: one for (kind, name), one in named.items() if kind == "Deployment"}
    need(sorted(deployments) == sorted(["gateway"] + [f"stage-{s}" for s in STAGES]), f"{of}: {sorted(deployments)}")
    for name, one in deployments.items():
        what, template = f"{of}: {name}", one["spec"]["template"]
        pod, labels = template["spec"], template["metadata"]["labels"]
        need(one["spec"]["selector"]["matchLabels"].items() <= labels.items(), f"{what}: it selects other pods")
        (container,) = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for mount in container["volumeMounts"]:
            need(mount["name"] in volumes, f"{what}: no volume {mount['name']}")
        need({m["name"] for m in container["volumeMounts"]} == set(volumes), f"{what}: a volume is mounted nowhere")
        for volume in volumes.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            need(claim is None or ("PersistentVolumeClaim", claim) in named, f"{what}: no claim {claim}")
            config = volume.get("configMap", {}).get("name")
            need(config is None or ("ConfigMap", config) in named, f"{what}: no configuration {config}")
        role = name.removeprefix("stage-")
        passwords = [item["key"] for item in volumes["passwords"]["secret"]["items"]]
        own = list(gateway) if name == "gateway" else [f"{role}.password"]
        need(passwords == own, f"{what}: it is handed {passwords}")
        need(not pod["enableServiceLinks"] and not pod["automountServiceAccountToken"], f"{what}: more than it needs")
        security, own = pod["securityContext"], container["securityContext"]
        need(security["runAsNonRoot"] and security["seccompProfile"]["type"] == "RuntimeDefault", f"{what}: {security}")
        need(own["readOnlyRootFilesystem"] and not own["allowPrivilegeEscalation"], f"{what}: {own}")
        need(own["capabilities"] == {"drop": ["ALL"]}, f"{what}: {own}")
        need("memory" in container["resources"]["limits"], f"{what}: no limit of memory")
        # stage-llm answers the job in flight, which takes minutes; the others finish a message.
        grace = 600 if name == "stage-llm" else 60
        need(pod["terminationGracePeriodSeconds"] == grace, f"{what}: {pod['terminationGracePeriodSeconds']} s to drain")
        if name != "gateway":
            (port,) = [port["containerPort"] for port in container["ports"] if port["name"] == "metrics"]
            listen = tomllib.loads((KUBERNETES / "base/vidi.toml").read_text())["metrics"]["listen"]
            scraped = template["metadata"]["annotations"]["prometheus.io/port"]
            need(listen == f"0.0.0.0:{port}" and scraped == str(port), f"{what}: metrics at {port}, {scraped}, {listen}")
            need(container["args"] == ["stage", role, "--alive", "/run/vidi/alive"], f"{what}: {container['args']}")
        wants = "nvidia.com/gpu" in container["resources"]["limits"]
        need(wants == (gpu and name in ["stage-vision", "stage-audio", "stage-fuse", "stage-llm"]), f"{what}: GPU {wants}")
    media = {m["name"]: m for m in deployments["stage-decode"]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]}
    need(media["media"]["readOnly"], f"{of}: stage-decode may write on media")
    scaled = [one for (kind, _), one in named.items() if kind == "ScaledObject"]
    targets = sorted(one["spec"]["scaleTargetRef"]["name"] for one in scaled)
    need(targets == sorted(f"stage-{s}" for s in STAGES), f"{of}: scaled are {targets}")
    for one in scaled:
        for trigger in one["spec"]["triggers"]:
            if "query" in trigger["metadata"]:
                parsed(trigger["metadata"]["query"], f"{of}: {one['metadata']['name']}")
    for (kind, name), one in named.items():
        if kind == "NetworkPolicy":
            wanted = one["spec"]["podSelector"]["matchLabels"].items()
            ours = any(wanted <= d["spec"]["template"]["metadata"]["labels"].items() for d in deployments.values())
            need(ours or name == "broker", f"{of}: the network policy {name} is of no pod")
    (service,) = [one for (kind, _), one in named.items() if kind == "Service"]
    labels = deployments["gateway"]["spec"]["template"]["metadata"]["labels"]
    need(service["spec"]["selector"].items() <= labels.items(), f"{of}: the service is of no pod")


def with_component(component):
    """What the overlay for CPUs is with a component."""
    with tempfile.TemporaryDirectory() as directory:
        base, part = (relpath(KUBERNETES / path, directory) for path in ["overlays/cpu", f"components/{component}"])
        overlay = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
        overlay |= {"resources": [base], "components": [part]}
        (Path(directory) / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        objects = rendered(directory)
    schemas(objects, component)
    return objects


def kubernetes():
    for overlay in ["cpu", "gpu"]:
        objects = rendered(KUBERNETES / "overlays" / overlay)
        schemas(objects, overlay)
        references(objects, overlay, overlay == "gpu")
        print(f"kubernetes, {overlay}: {len(objects)} objects")
    objects = with_component("files-on-bus")
    references(objects, "files-on-bus", False, ("client.password", "gateway.password"))
    for name, key in [("gateway", "HTTP"), ("stage-decode", "DECODE")]:
        (one,) = [o for o in objects if o["kind"] == "Deployment" and o["metadata"]["name"] == name]
        pod = one["spec"]["template"]["spec"]
        claims = [volume["name"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
        need(claims == (["media"] if name == "stage-decode" else []), f"files-on-bus: {name} mounts {claims}")
        env = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
        mounted = {mount["mountPath"]: mount for mount in pod["containers"][0]["volumeMounts"]}
        spool, room = env[f"VIDI_{key}_SPOOL"], int(env[f"VIDI_{key}_SPOOL_BYTES"])
        need(not mounted[spool].get("readOnly"), f"files-on-bus: {name} may not write to {spool}")
        (volume,) = [volume for volume in pod["volumes"] if volume["name"] == mounted[spool]["name"]]
        limit = int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) << 30
        need(room < limit, f"files-on-bus: {name} keeps {room} bytes on {limit}")
    objects = with_component("to-zero")
    references(objects, "to-zero", False)
    least = {o["metadata"]["name"]: o["spec"]["minReplicaCount"] for o in objects if o["kind"] == "ScaledObject"}
    need(least == {f"stage-{s}": int(s == "llm") for s in STAGES}, f"to-zero: {least}")
    values = yaml.safe_load((KUBERNETES / "nats-values.yaml").read_text())
    need(values["config"]["jetstream"]["enabled"] and values["config"]["monitor"]["port"] == 8222, "nats-values.yaml")
    values = yaml.safe_load((KUBERNETES / "nats-cluster-values.yaml").read_text())
    need(values["config"]["cluster"] == {"enabled": True, "replicas": 3}, "nats-cluster-values.yaml")
    print("kubernetes, files on the bus, to zero; values of the broker")


def compose():
    base, gpu = ROOT / "deploy/compose/compose.yaml", ROOT / "deploy/compose/compose.gpu.yaml"
    env = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "MODEL": "/srv/model"}
    for files, on_gpu in [([base], False), ([base, gpu], True)]:
        args = [arg for file in files for arg in ["-f", file]]
        said = run(TOOLS / "docker-compose", *args, "--profile", "watch", "config", "--format", "json", env=env)
        project = json.loads(said)
        services = project["services"]
        wanted = {*STAGES, "gateway", "broker", "prometheus", "grafana"}
        need(set(services) == wanted, f"compose: {sorted(services)}")
        devices = set()
        for name in [*STAGES, "gateway"]:
            service = services[name]
            need(service["read_only"] and service["cap_drop"] == ["ALL"], f"compose: {name} may do more than it needs")
            need("no-new-privileges:true" in service["security_opt"] and "mem_limit" in service, f"compose: {name}")
            secrets = [secret["source"] for secret in service["secrets"]]
            own = ["client.password", "token"] if name == "gateway" else [f"{name}.password"]
            need(secrets == own, f"compose: {name} is handed {secrets}")
            need(list(service["networks"]) == (["inside", "outside"] if name == "gateway" else ["inside"]), f"compose: {name}")
            reserved = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
            need(bool(reserved) == (on_gpu and name in ["vision", "audio", "fuse", "llm"]), f"compose: {name}: {reserved}")
            devices |= {tuple(device["device_ids"]) for device in reserved}
            if reserved:
                capabilities = service["environment"]["NVIDIA_DRIVER_CAPABILITIES"]
                need(capabilities == "compute,utility,video", f"compose: {name}: {capabilities}")
        need(len(devices) == int(on_gpu), f"compose: the stages see different GPUs: {devices}")
        need(project["networks"]["inside"].get("internal"), "compose: the stages' network leads outside")
        media = services["decode"]["volumes"]
        need(media and all(volume.get("read_only") for volume in media), f"compose: decode may write: {media}")
        for config in project["configs"].values():
            need(Path(config["file"]).is_file(), f"compose: no file {config['file']}")
        print(f"compose, {'GPU' if on_gpu else 'CPU'}: {len(services)} services")


def watched():
    """Files of Prometheus and Grafana; prints the queries of the dashboard, which the caller compares with the metrics."""
    directory = ROOT / "deploy/compose"
    scraped = yaml.safe_load((directory / "prometheus.yml").read_text())
    gateway, stages = scraped["scrape_configs"]
    need([gateway["job_name"], stages["job_name"]] == ["vidi", "vidi-stages"], "prometheus.yml")
    (found,) = stages["dns_sd_configs"]
    need(found["names"] == STAGES, f"prometheus.yml: stages are {found['names']}")
    listen = tomllib.loads((directory / "vidi.toml").read_text())["metrics"]["listen"]
    need(listen == f"0.0.0.0:{found['port']}", f"prometheus.yml: port {found['port']}, and stages listen on {listen}")
    (source,) = yaml.safe_load((directory / "grafana/datasource.yaml").read_text())["datasources"]
    dashboard = json.loads((directory / "grafana/vidi.json").read_text())
    panels = dashboard["panels"]
    need(len({panel["id"] for panel in panels}) == len(panels), "vidi.json: two panels have one id")
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    need(len(set(cells)) == len(cells) and all(x < 24 for x, _ in cells), "vidi.json: panels lie over each other")
    for panel in panels:
        for target in panel["targets"]:
            need(target["datasource"]["uid"] == source["uid"], f"vidi.json: {panel['title']}: another source")
            parsed(target["expr"], f"vidi.json: {panel['title']}")
            print(f"query: {target['expr']}")


kubernetes()
compose()
watched()
