"""The configuration files for TensorFlow Serving say what they are meant to, in the server's own messages."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import prometheus_client
import pytest
import yaml
from tensorflow_serving.config import model_server_config_pb2

from serving.server.config import (
    BatchingParameters,
    MonitoringConfig,
    SSLConfig,
    channel_arguments,
    check_batching,
    model_configs,
    read_config,
)
from serving.server.monitoring import Metrics
from serving.tools.reference_model import server_command

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "serving" / "deploy"


def test_models_have_a_stable_and_a_canary_version() -> None:
    [model] = model_configs(read_config(DEPLOY / "models.config", model_server_config_pb2.ModelServerConfig))
    assert (model.name, model.base_path) == ("eta", "/models/eta")
    assert list(model.model_version_policy.specific.versions) == [1, 2]
    assert dict(model.version_labels) == {"stable": 1, "canary": 2}


def test_batching_takes_what_clients_send() -> None:
    parameters = read_config(DEPLOY / "batching.config", BatchingParameters)
    check_batching(parameters)
    # RankingClient sends 32 rows in a call: R requests, or N rows of `serving_default`.
    assert parameters.max_batch_size.value == 64
    assert parameters.pad_variable_length_inputs
    # With it, one call of no rows ends TensorFlow Serving 2.16.1.
    assert not parameters.allowed_batch_sizes


# TensorFlow Serving's own defaults refuse RankingClient's parallel calls, and never load what XLA compiles.
NEEDED = ("--grpc_max_threads=", "--xla_cpu_compilation_enabled")


def test_every_command_that_starts_tensorflow_serving_sets_what_rankings_need() -> None:
    texts = [ROOT / "Makefile", ROOT / "README.md", *ROOT.glob("docs/*.md")]
    commands = [
        (path.name, command)
        for path in texts
        for command in re.findall(r"^.*tensorflow_model_server --.*$", path.read_text().replace("\\\n", " "), re.M)
    ]
    assert {name for name, _ in commands} == {"Makefile", "serving.md"}
    compose = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())["services"]["serving"]
    commands.append(("docker-compose.yml", " ".join(compose["command"])))
    [container] = _manifests()["Deployment"]["spec"]["template"]["spec"]["containers"]
    commands.append(("kubernetes.yaml", " ".join(container["args"])))
    for name, command in commands:
        assert [flag for flag in NEEDED if flag not in command] == [], name
    assert NEEDED[0] in server_command(Path("models.config"))


def test_make_serve_names_the_model_and_its_directory(tmp_path: Path) -> None:
    """A tensorflow_model_server that only prints what it is told, run by `make serve`."""
    binary = tmp_path / "bin" / "tensorflow_model_server"
    binary.parent.mkdir()
    binary.write_text('#!/bin/sh\necho "$@"\n')
    binary.chmod(0o755)
    stamp = tmp_path / "installed"
    stamp.touch()
    variables = [f"INSTALLED={stamp}", f"MODEL_DIR={tmp_path}", "MODEL_NAME=films", "PORT=8600"]
    command = ["make", "--old-file", str(stamp), "serve", *variables]
    # Not as a part of the `make` that runs the tests.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment["PATH"] = f"{binary.parent}:{environment['PATH']}"
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.splitlines()[-1].split() == [
        "--port=8600",
        "--model_name=films",
        f"--model_base_path={tmp_path}",
        "--grpc_max_threads=64",
        "--xla_cpu_compilation_enabled",
    ]


def test_a_server_that_ends_starts_again() -> None:
    compose = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())
    assert compose["services"]["serving"]["restart"] == "unless-stopped"


def test_a_pod_drains_before_it_gets_sigterm() -> None:
    """TensorFlow Serving ends at SIGTERM with the calls that it has: until then clients must have moved on."""
    pod = _manifests()["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    [arguments] = [flag for flag in container["args"] if flag.startswith("--grpc_channel_arguments=")]
    age = channel_arguments(arguments.partition("=")[2])["grpc.max_connection_age_ms"]
    assert isinstance(age, int)
    command, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    # gRPC asks for addresses again when a connection ends, a tenth after its age at most, and every 30 s at most.
    assert int(seconds) >= 1.1 * age / 1000 + 30
    assert pod["terminationGracePeriodSeconds"] > int(seconds)


def test_monitoring_serves_prometheus_where_it_scrapes() -> None:
    monitoring = read_config(DEPLOY / "monitoring.config", MonitoringConfig)
    assert monitoring.prometheus_config.enable
    [job] = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert job["metrics_path"] == monitoring.prometheus_config.path
    assert job["static_configs"] == [{"targets": ["serving:8501"]}]


def test_tls_template_asks_for_client_certificates() -> None:
    tls = read_config(DEPLOY / "ssl.config", SSLConfig)
    assert tls.client_verify
    assert tls.server_key.startswith("-----BEGIN PRIVATE KEY-----\n")
    assert tls.server_cert.startswith("-----BEGIN CERTIFICATE-----\n")
    assert tls.custom_ca.startswith("-----BEGIN CERTIFICATE-----\n")


def test_images_match_the_locked_serving_api() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    version = next(line.split()[0].partition("==")[2] for line in lines if line.startswith("tensorflow-serving-api=="))
    compose = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())
    assert compose["services"]["serving"]["image"] == f"tensorflow/serving:{version}"
    [container] = _manifests()["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"tensorflow/serving:{version}"


def test_files_named_by_flags_are_mounted() -> None:
    compose = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())["services"]["serving"]
    named = [flag.partition("=/config/")[2] for flag in compose["command"] if "=/config/" in flag]
    assert named == ["models.config", "monitoring.config"]
    assert all((DEPLOY / name).is_file() for name in named)
    assert ".:/config:ro" in compose["volumes"]


def test_kubernetes_manifests_fit_together(tmp_path: Path) -> None:
    manifests = _manifests()
    assert set(manifests) == {"ConfigMap", "Deployment", "Service", "HorizontalPodAutoscaler"}
    data = manifests["ConfigMap"]["data"]
    for name, text in data.items():
        (tmp_path / name).write_text(text)
    [model] = model_configs(read_config(tmp_path / "models.config", model_server_config_pb2.ModelServerConfig))
    assert model.model_version_policy.latest.num_versions == 1
    assert read_config(tmp_path / "monitoring.config", MonitoringConfig).prometheus_config.enable
    pod = manifests["Deployment"]["spec"]["template"]
    [container] = pod["spec"]["containers"]
    assert [flag.rpartition("/")[2] for flag in container["args"] if "=/config/" in flag] == list(data)
    assert container["readinessProbe"]["httpGet"] == {"path": f"/v1/models/{model.name}", "port": "rest"}
    assert pod["metadata"]["labels"] == manifests["Service"]["spec"]["selector"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"]: port["port"] for port in manifests["Service"]["spec"]["ports"]} == ports
    assert (
        manifests["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
        == manifests["Deployment"]["metadata"]["name"]
    )
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == [model.base_path, "/config"]


def test_grafana_is_provisioned_with_the_dashboard() -> None:
    compose = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())
    grafana = compose["services"]["grafana"]
    [mount] = grafana["volumes"]
    source, target, _ = mount.split(":")
    assert (DEPLOY / source).is_file()
    contents = {name: yaml.safe_load(config["content"]) for name, config in compose["configs"].items()}
    assert [config["source"] for config in grafana["configs"]] == list(contents)
    assert contents["grafana_datasource"]["datasources"][0]["url"] == "http://prometheus:9090"
    [provider] = contents["grafana_dashboards"]["providers"]
    assert provider["options"]["path"] == str(Path(target).parent)


def test_dashboard_asks_for_metrics_that_the_servers_have() -> None:
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    # Ours, as this server names them, and TensorFlow Serving's, whose names begin with a colon.
    metrics = Metrics()
    metrics.watch_versions(dict)
    ours = set(re.findall(r"^# TYPE (\S+)", prometheus_client.generate_latest(metrics.registry).decode(), re.M))
    asked = {name for query in queries for name in re.findall(r"\bserving_\w+", query) if not name.startswith(":")}
    assert {name.removesuffix("_bucket") for name in asked} == ours
    theirs = {name for query in queries for name in re.findall(r":tensorflow:[a-z_:]+", query)}
    assert theirs == {
        ":tensorflow:cc:saved_model:load_attempt_count",
        ":tensorflow:serving:batching_session:queuing_latency_bucket",
        ":tensorflow:serving:request_count",
        ":tensorflow:serving:request_latency_bucket",
        ":tensorflow:serving:runtime_latency_bucket",
    }
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert {name for query in queries for name in re.findall(r"\$(\w+)", query)} <= variables | {"__rate_interval"}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("name", ["models.config", "batching.config", "monitoring.config", "ssl.config"])
def test_every_file_says_what_flag_takes_it(name: str) -> None:
    flag = {
        "models.config": "--model_config_file",
        "batching.config": "--batching_parameters_file",
        "monitoring.config": "--monitoring_config_file",
        "ssl.config": "--ssl_config_file",
    }[name]
    assert (DEPLOY / name).read_text().startswith(f"# {flag}")


def _manifests() -> dict[str, dict]:
    return {document["kind"]: document for document in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}
