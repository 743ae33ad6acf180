"""The native broker for real: started, found again, crashed, refused, secured."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from schemas.errors import ConflictError, InvalidError, SetupError
from wire.broker import NativeBroker, Runtime, resolve
from wire.broker.jars import POM
from wire.kafka import Link
from wire.process import Process, alive, free_port, wait_until
from wire.settings import Settings

CACHE = Path(os.environ.get("TAPE_CACHE", "~/.cache/tickertape")).expanduser()

pytestmark = [pytest.mark.slow, pytest.mark.kafka, pytest.mark.usefixtures("jars")]


def gone(pid: int) -> bool:
    return wait_until(lambda: not Path(f"/proc/{pid}").exists() or _zombie(pid), deadline_s=10)


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_it_starts_twice_stops_twice_and_keeps_its_address(tmp_path: Path) -> None:
    broker = NativeBroker(tmp_path, CACHE)
    assert not broker.status().running
    assert broker.stop()
    first = broker.start(tie=True)
    try:
        assert first.running
        assert broker.start(tie=True) == first
        assert broker.status() == first
        with Link(Settings(kafka_url=first.url)) as link:
            known = link.describe()
        assert (known.brokers, known.share, known.id) == (1, True, first.cluster)
        assert "started" in broker.logs()
    finally:
        assert broker.stop()
    stopped = broker.status()
    assert (stopped.running, stopped.url, stopped.nodes[0].pid) == (False, first.url, None)
    assert broker.stop()
    began = time.monotonic()
    second = broker.start(tie=True)
    took = time.monotonic() - began
    broker.stop()
    assert (second.url, second.cluster) == (first.url, first.cluster)
    assert took < 6


def test_it_moves_to_the_port_that_is_asked_for_and_not_while_it_runs(tmp_path: Path) -> None:
    """The way out of a port in use is another one: also for a home that had that port."""
    there, next_one = free_port(), free_port()
    NativeBroker(tmp_path, CACHE, port=there).start(tie=True)
    broker = NativeBroker(tmp_path, CACHE, port=next_one)
    try:
        with pytest.raises(ConflictError, match=f"runs already, on port {there}") as told:
            broker.start(tie=True)
        assert (told.value.code, told.value.hint) == ("TAPE-3003", "stop it first, or take another home")
        broker.stop()
        moved = broker.start(tie=True)
        assert moved.url == f"127.0.0.1:{next_one}"
        with Link(Settings(kafka_url=moved.url)) as link:
            assert link.describe().id == moved.cluster
        assert NativeBroker(tmp_path, CACHE).start(tie=True) == moved, "and stays there"
    finally:
        broker.stop()


def test_it_survives_a_crash_with_what_was_written(tmp_path: Path) -> None:
    from schemas.topics import Topic
    from wire.follow import KafkaFollower
    from wire.publish import KafkaPublisher
    from wire.topics import ensure

    broker = NativeBroker(tmp_path, CACHE)
    settings = Settings(kafka_url=broker.start(tie=True).url)
    try:
        ensure(settings, [Topic("t", 1)])
        publisher = KafkaPublisher(settings)
        publisher.publish("t", key=None, value=b"kept").result(10)
        publisher.close(10)
        broker.kill_node(1)
        assert not broker.status().running
        broker.start(tie=True)
        [batch] = KafkaFollower(settings).read("t")
        assert [record.value for record in batch] == [b"kept"]
    finally:
        broker.stop()


def test_a_pid_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    broker = NativeBroker(tmp_path, CACHE)
    broker.start(tie=True)
    broker.stop()
    state = broker.folder / "node-1" / "process.json"
    state.write_text(json.dumps({"process": {"pid": os.getpid(), "born": "1@another"}}))
    assert not broker.status().running
    assert broker.stop()
    state.write_text("{not json")
    try:
        assert broker.start(tie=True).running
    finally:
        broker.stop()


def test_two_starts_at_once_make_one_broker(tmp_path: Path) -> None:
    found: list[int | None] = []

    def start() -> None:
        found.append(NativeBroker(tmp_path, CACHE).start().nodes[0].pid)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert NativeBroker(tmp_path, CACHE).stop()
    assert len(found) == 2
    assert len(set(found)) == 1


def test_a_port_in_use_is_named_with_its_owner(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConflictError, match=rf"port {port} is in use by .*\(pid {os.getpid()}\)") as caught:
            NativeBroker(tmp_path, CACHE, port=port).start(tie=True)
    assert (caught.value.code, caught.value.place["port"]) == ("TAPE-3003", port)
    assert not NativeBroker(tmp_path, CACHE).status().running


def test_another_port_is_not_taken_silently_after_a_restart(tmp_path: Path) -> None:
    broker = NativeBroker(tmp_path, CACHE)
    port = broker.start(tie=True).nodes[0].port
    broker.stop()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ConflictError):
        broker.start(tie=True)


def test_without_java_it_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no Java program") as caught:
        resolve(tmp_path, env={"PATH": str(tmp_path)})
    assert caught.value.code == "TAPE-8001"
    assert "apt-get install" in caught.value.hint


@pytest.mark.parametrize(("version", "said"), [("11.0.2", "Java 11"), ("1.8.0_392", "Java 8"), ("?", "unknown")])
def test_an_old_java_is_refused_with_its_version(tmp_path: Path, version: str, said: str) -> None:
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    java.chmod(0o755)
    with pytest.raises(SetupError, match=f"{said}.* is too old") as caught:
        resolve(tmp_path, env={"PATH": str(tmp_path)})
    assert caught.value.code == "TAPE-8001"


def test_without_maven_it_says_how_to_get_it(tmp_path: Path, jars: Runtime) -> None:
    (tmp_path / "java").symlink_to(jars.java.resolve())
    with pytest.raises(SetupError, match="Maven is needed") as caught:
        resolve(tmp_path / "cache", env={"PATH": str(tmp_path)})
    assert caught.value.code == "TAPE-8002"


def test_a_failing_maven_leaves_nothing_half_done(tmp_path: Path, jars: Runtime) -> None:
    (tmp_path / "java").symlink_to(jars.java.resolve())
    maven = tmp_path / "mvn"
    maven.write_text("#!/bin/sh\necho '[ERROR] no route to the mirror'\nexit 1\n")
    maven.chmod(0o755)
    with pytest.raises(SetupError, match="no route to the mirror") as caught:
        resolve(tmp_path / "cache", env={"PATH": f"{tmp_path}:/bin:/usr/bin"})
    assert caught.value.code == "TAPE-8004"
    assert not list((tmp_path / "cache").rglob("libs"))
    maven.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(SetupError, match="brought no Kafka jar"):
        resolve(tmp_path / "cache", env={"PATH": f"{tmp_path}:/bin:/usr/bin"})


def test_a_broker_that_ends_at_the_start_says_why(tmp_path: Path) -> None:
    broker = NativeBroker(tmp_path, CACHE, extra={"log.retention.ms": "never"})
    with pytest.raises(SetupError, match=r"log\.retention\.ms") as caught:
        broker.start(tie=True)
    assert caught.value.code == "TAPE-8004"
    assert not broker.status().running


def test_a_broker_that_dies_after_formatting_says_why(tmp_path: Path) -> None:
    broker = NativeBroker(tmp_path, CACHE)
    broker.start(tie=True)
    broker.stop()
    with pytest.raises(SetupError, match=r"did not start.*log\.retention\.ms") as caught:
        NativeBroker(tmp_path, CACHE, extra={"log.retention.ms": "never"}).start(tie=True)
    assert caught.value.code == "TAPE-8004"
    assert not broker.status().running


def test_ctrl_c_while_starting_leaves_no_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from wire.broker import NativeBroker\n"
        "NativeBroker(Path(sys.argv[1]), Path(sys.argv[2])).start()"
    )
    child = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(tmp_path), str(CACHE)])
    state = tmp_path / "kafka" / "node-1" / "process.json"
    assert wait_until(state.exists, deadline_s=20, every_s=0.005)
    pid = json.loads(state.read_text())["process"]["pid"]
    child.send_signal(signal.SIGINT)
    assert child.wait(20) != 0
    assert gone(pid)


def test_a_tied_broker_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from wire.broker import NativeBroker\n"
        "NativeBroker(Path(sys.argv[1]), Path(sys.argv[2])).start(tie=True); print('up', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path), str(CACHE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "up\n"
        pid = NativeBroker(tmp_path, CACHE).status().nodes[0].pid
        assert pid is not None
        child.kill()
    assert gone(pid)


def test_a_folder_of_another_size_is_refused(tmp_path: Path) -> None:
    broker = NativeBroker(tmp_path, CACHE)
    broker.start(tie=True)
    broker.stop()
    with pytest.raises(InvalidError, match="cluster of 1 nodes, not 3"):
        NativeBroker(tmp_path, CACHE, nodes=3).start(tie=True)
    (broker.folder / "cluster.json").write_text("{")
    with pytest.raises(InvalidError, match="cannot be read"):
        broker.status()


def test_three_nodes_form_one_cluster_and_one_may_go(tmp_path: Path) -> None:
    broker = NativeBroker(tmp_path, CACHE, nodes=3)
    status = broker.start(tie=True)
    try:
        assert len(status.nodes) == 3
        with Link(Settings(kafka_url=status.url)) as link:
            assert link.describe().brokers == 3
        broker.kill_node(2)
        assert [node.running for node in broker.status().nodes] == [True, False, True]
        broker.start_node(2, tie=True)
        assert broker.status().running
        assert broker.stop_node(3)
        broker.start(tie=True)
        assert broker.status().running
    finally:
        broker.stop()
    with pytest.raises(InvalidError, match="no node 4"):
        broker.kill_node(4)


def test_the_jars_are_resolved_into_a_fresh_cache(tmp_path: Path, jars: Runtime) -> None:
    told: list[str] = []
    found = resolve(tmp_path, progress=told.append)
    assert {path.name for path in found.libs.glob("*.jar")} == {path.name for path in jars.libs.glob("*.jar")}
    assert "Maven" in told[0]
    assert any("kafka-clients" in line for line in told)
    told.clear()
    assert resolve(tmp_path, progress=told.append) == found
    assert told == []
    (found.libs / ".pom.sha256").write_text("another")
    found.archive.touch()
    again = resolve(tmp_path, progress=told.append)
    assert told
    assert again.archive != found.archive
    assert not found.archive.exists()


def test_the_class_archive_is_made_once(tmp_path: Path, jars: Runtime) -> None:
    root = tmp_path / "cache" / "kafka" / jars.libs.parent.name
    root.mkdir(parents=True)
    shutil.copytree(jars.libs, root / "libs", copy_function=os.link)
    told: list[str] = []
    broker = NativeBroker(tmp_path / "home", tmp_path / "cache")
    broker.start(tie=True, progress=told.append)
    broker.stop()
    assert told == ["preparing a class archive for quick starts (once)"]
    [archive] = root.glob("classes-*.jsa")
    assert archive.stat().st_size > 1 << 20
    assert sorted(path.name for path in root.iterdir() if path.name.startswith(".")) == []


def test_the_published_pom_is_the_one_that_is_used() -> None:
    assert (Path(__file__).parents[2] / "deploy" / "kafka" / "pom.xml").read_bytes() == POM.read_bytes()


def test_a_process_is_known_by_its_birth(tmp_path: Path) -> None:
    broker = NativeBroker(tmp_path, CACHE)
    pid = broker.start(tie=True).nodes[0].pid
    try:
        assert pid is not None
        assert not alive(Process(pid, "another birth"))
    finally:
        broker.stop()
