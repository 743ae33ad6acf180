"""`tape models`: what is registered, listed, compared, promoted, rolled back, exported, verified and made again."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from cli_rig import Result, Tape, bare, told
from hypothesis import given
from hypothesis import strategies as st
from models_rig import BORN, HASH, Stock, at

from producers.cli.exits import Exit
from producers.memory import MemoryPorts
from producers.models import Shelf, promote, rollback
from schemas.artifact import ArtifactFile
from schemas.errors import ConflictError, FailureClass, NotFoundError
from schemas.event import EventType
from schemas.job import Training
from schemas.lineage import ModelVersion, version_of
from schemas.outcome import Failure, Outcome, Status
from schemas.version import Move
from wire.blobs import open_store
from wire.blobs.manifest import blob_name, publish, read_manifest
from wire.blobs.memory import Memory
from wire.registry import Registry
from wire.settings import Settings


@pytest.fixture
def stock(ports: MemoryPorts) -> Stock:
    return Stock(ports.blobs)


def test_a_version_is_the_files_it_holds_in_any_order_and_nothing_else() -> None:
    files = [ArtifactFile(path=path, sha256=digit * 64, size=1) for path, digit in (("a", "1"), ("b", "2"))]
    assert version_of(files) == version_of(reversed(files))
    assert version_of(files) != version_of(files[:1])
    swapped = [ArtifactFile(path=path, sha256=digit * 64, size=1) for path, digit in (("a", "2"), ("b", "1"))]
    assert version_of(files) != version_of(swapped)


class TestListing:
    def test_versions_are_listed_with_their_aliases(self, tape: Tape, stock: Stock) -> None:
        old, new, other = stock.put(b"1"), stock.put(b"2", loss=0.25), stock.put(b"3", "rank")
        tape("models", "promote", at(old), "--to", "prod")
        tape("models", "promote", at(old), "--to", "canary")
        for argv in (("models",), ("models", "ls")):
            rows = tape(*argv).rows
            assert [(row["model"], row["version"], row["aliases"]) for row in rows] == [
                ("mood", old.version, ["canary", "prod"]), ("mood", new.version, []), ("rank", other.version, []),
            ]  # fmt: skip
        row = rows[1]
        assert (row["method"], row["base"], row["data"]) == ("lora", "tiny", "blob:uploads/rows.jsonl")
        assert (row["loss"], row["validation_loss"], row["job"]) == (0.25, 0.75, "job-2")
        assert [row["model"] for row in tape("models", "ls", "rank").rows] == ["rank"]
        head, first, *_ = tape("models", "--output", "table").out.splitlines()
        assert head.split()[:4] == ["MODEL", "VERSION", "ALIASES", "METHOD"]
        assert first.split()[:5] == ["mood", old.version, "canary,", "prod", "lora"]

    def test_a_table_is_as_narrow_as_it_can_be(self, tape: Tape, stock: Stock) -> None:
        stock.put(
            b"1", base="artifact:artifacts/uploads/tiny/manifest.json", data=f"blob:uploads/{HASH}.jsonl", loss=4.9696
        )
        text = tape("models", "--output", "table").out
        for words in ("artifact:uploads/tiny ", "blob:uploads/555555555555….jsonl", "4.97 "):
            assert words in text
        stock.put(b"2")
        text = tape(
            "models", "diff", "mood", f"mood@{stock.registry.versions('mood')[0].version}", "--output", "table"
        ).out
        assert "…" in text
        assert max(map(len, text.splitlines())) < 120

    def test_there_is_nothing(self, tape: Tape) -> None:
        found = tape("models")
        assert (found.code, found.out, "no model is registered" in found.err) == (Exit.OK, "", True)

    def test_everything_of_one_is_shown(self, tape: Tape, stock: Stock) -> None:
        version = stock.put(b"1")
        tape("models", "promote", at(version), "--to", "prod", "--why", "it is good")
        row = tape("models", "show", "mood@prod").row
        assert (row["model"], row["version"], row["aliases"]) == ("mood", version.version, ["prod"])
        for field in ("base", "base_sha256", "data", "request", "settings", "metrics", "versions", "commit", "job"):
            assert row[field] == getattr(version, field)
        assert [file["path"] for file in row["files"]] == ["adapter_config.json", "adapter_model.safetensors"]
        assert all(len(file["sha256"]) == 64 for file in row["files"])
        (move,) = row["history"]
        assert (move["alias"], move["before"], move["after"], move["why"]) == (
            "prod", None, version.version, "it is good",
        )  # fmt: skip
        assert "@" in move["by"]
        text = tape("models", "show", "mood", "--output", "table").out
        for words in ("request.steps", "metrics.loss", "file adapter_model.safetensors", "it is good", "nothing → "):
            assert words in text

    def test_lineage_is_shown_when_the_files_are_lost(self, tape: Tape, stock: Stock) -> None:
        version = stock.put(b"1")
        stock.blobs.delete(version.artifact.uri.removeprefix("artifact:"))
        row = tape("models", "show", "mood").row
        assert (row["files"], row["request"]["steps"]) == ([], 3)
        assert "TAPE-2001" in row["problem"]

    @pytest.mark.parametrize("argv", [
        ("show", "nothing"), ("ls", "nothing"), ("diff", "mood", "nothing"), ("export", "nothing", "x"),
        ("verify", "nothing"), ("promote", "nothing", "--to", "prod"), ("rollback", "nothing"), ("gc", "nothing"),
        ("reproduce", "nothing"),
    ])  # fmt: skip
    def test_a_name_that_is_not_there_is_told_with_those_that_are(
        self, tape: Tape, stock: Stock, argv: tuple[str, ...]
    ) -> None:
        stock.put(b"1")
        found = tape("models", *argv)
        assert (found.code, found.out) == (Exit.NOT_FOUND, "")
        assert "TAPE-2008 no model is called 'nothing'" in found.err
        assert "way out: there are: mood" in found.err


def test_a_real_store_that_the_settings_name(tape: Tape, home: Path, tmp_path: Path) -> None:
    stock = Stock(open_store(Settings.load()))
    old, new = stock.put(b"1"), stock.put(b"2")
    run = bare(tape)
    assert [row["version"] for row in run("models", "ls").rows] == [old.version, new.version]
    assert run("models", "promote", at(new), "--to", "prod").code == Exit.OK
    assert run("models", "export", "mood@prod", str(tmp_path / "out")).code == Exit.OK
    assert [row["what"] for row in run("models", "gc", "--keep", "0", "--yes").rows] == ["version", "manifest", "blob"]
    assert run("models", "verify", "--all").code == Exit.OK
    assert [row["version"] for row in run("models").rows] == [new.version]
    assert home.exists()


class TestDiff:
    def test_what_differs_is_said_and_what_is_incidental_is_not(self, tape: Tape, stock: Stock) -> None:
        one = stock.put(b"1", request={"steps": 3, "lora": {"rank": 8}, "publish_as": "mood"})
        other = stock.put(b"2", "rank", loss=0.25, request={"steps": 5, "lora": {"rank": 8}, "publish_as": "rank"})
        found = tape("models", "diff", "mood", "rank")
        rows = {row["field"]: (row["a"], row["b"], row["change"]) for row in found.rows}
        hashes = [read_manifest(stock.blobs, version.artifact).files[1].sha256 for version in (one, other)]
        assert rows == {
            "request.steps": (3, 5, 2),
            "metrics.loss": (0.5, 0.25, -0.25),
            "file adapter_model.safetensors": (*hashes, None),
        }
        assert f"a is {at(one)}, b is {at(other)}" in found.err

    def test_a_version_differs_from_itself_in_nothing(self, tape: Tape, stock: Stock) -> None:
        stock.put(b"1")
        found = tape("models", "diff", "mood", "mood")
        assert (found.out, "they are the same bytes" in found.err) == ("", True)

    def test_a_field_that_only_one_has(self, tape: Tape, stock: Stock) -> None:
        one = stock.put(b"1", versions={"torch": "2.8", "old": "1"})
        other = stock.put(b"2", versions={"torch": "2.8", "new": "1"}, exact=False)
        rows = {row["field"]: (row["a"], row["b"]) for row in tape("models", "diff", at(one), at(other)).rows}
        assert rows["versions.old"] == ("1", None)
        assert rows["versions.new"] == (None, "1")
        assert rows["exact"] == (True, False), "no change between truths"


class TestPromote:
    def test_an_alias_moves_and_the_way_back_is_told(self, tape: Tape, stock: Stock) -> None:
        a, b = stock.put(b"1"), stock.put(b"2")
        found = tape("models", "promote", at(a), "--to", "prod")
        assert (found.row["before"], found.row["after"], "rollback" in found.err) == (None, a.version, False)
        found = tape(
            "models", "promote", f"mood@{b.version[:6]}", "--to", "prod", "--why", "better", "--output", "table"
        )
        assert found.out == f"mood@prod: {a.version} → {b.version}\n"
        assert "next: tape models rollback mood --alias prod" in found.err
        assert stock.registry.find("mood@prod") == b
        found = tape("models", "promote", at(b), "--to", "prod")
        assert (found.code, "it pointed there already" in found.err) == (Exit.OK, True)
        assert [move.why for move in stock.registry.aliases("mood").history] == ["", "better"]

    def test_it_is_refused_where_the_alias_points_elsewhere(self, tape: Tape, stock: Stock) -> None:
        a, b = stock.put(b"1"), stock.put(b"2")
        assert tape("models", "promote", at(a), "--to", "prod", "--expect", "none").code == Exit.OK
        for expect, shown in (("none", "nothing"), (b.version[:8], b.version)):
            found = tape("models", "promote", at(b), "--to", "prod", "--expect", expect)
            assert found.code == Exit.INVALID
            assert f"TAPE-3002 'prod' points to {a.version}, not to {shown}" in found.err
            assert "way out: look again, then decide" in found.err
        assert stock.registry.find("mood@prod") == a
        assert tape("models", "promote", at(b), "--to", "prod", "--expect", a.version).code == Exit.OK

    @pytest.mark.parametrize(("argv", "code", "told"), [
        (("mood", "--to", "beef"), Exit.USAGE, "TAPE-1010 'beef' reads like a version"),
        (("mood", "--to", "a b"), Exit.USAGE, "TAPE-1010 'a b' is no name"),
        (("mood", "--to", ""), Exit.USAGE, "TAPE-1010 '' is no name"),
        (("mood",), Exit.USAGE, "--to"),
        (("mood@canary", "--to", "prod"), Exit.NOT_FOUND, "TAPE-2008 'mood' has no version or alias 'canary'"),
        (("mood", "--to", "prod", "--expect", "0000"), Exit.NOT_FOUND, "'mood' has no version or alias '0000'"),
        (("a/b", "--to", "prod"), Exit.USAGE, "TAPE-1010 'a/b' is no name"),
    ])  # fmt: skip
    def test_what_is_wrong_is_said_and_nothing_moves(
        self, tape: Tape, stock: Stock, argv: tuple[str, ...], code: Exit, told: str
    ) -> None:
        stock.put(b"1")
        found = tape("models", "promote", *argv)
        assert (found.code, found.out) == (code, "")
        assert told in found.err
        assert stock.registry.aliases("mood").history == ()

    @pytest.mark.parametrize(("harm", "told"), [("gone", "TAPE-2001"), ("short", "TAPE-6007")])
    def test_nobody_is_led_to_a_version_whose_files_are_lost(
        self, tape: Tape, stock: Stock, harm: str, told: str
    ) -> None:
        version = stock.put(b"weights")
        name = blob_name(read_manifest(stock.blobs, version.artifact).files[1].sha256)
        stock.blobs.delete(name)
        if harm == "short":
            stock.blobs.put(name, b"weight")
        found = tape("models", "promote", "mood", "--to", "prod")
        assert (found.code != Exit.OK, told in found.err) == (True, True)
        assert stock.registry.aliases("mood").aliases == {}

    def test_a_version_that_is_swept_while_it_is_promoted_leads_nobody_astray(
        self, stock: Stock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        a, b = stock.put(b"1"), stock.put(b"2")
        shelf = Shelf(stock.blobs, "me", lambda: BORN)
        promote(shelf, at(a), "prod")
        moved = Registry.move

        def swept(registry: Registry[ModelVersion], name: str, move: Move) -> Any:
            done = moved(registry, name, move)
            if move.after == b.version:  # whoever removes it has looked before this, and deletes only now
                stock.blobs.delete(f"models/mood/versions/{b.version}.json")
            return done

        monkeypatch.setattr(Registry, "move", swept)
        with pytest.raises(NotFoundError, match="has no version"):
            promote(shelf, at(b), "prod")
        assert stock.registry.aliases("mood").aliases == {"prod": a.version}


class TestRollback:
    def test_it_goes_back_and_further_back(self, tape: Tape, stock: Stock) -> None:
        a, b, c = (stock.put(weights) for weights in (b"1", b"2", b"3"))
        for version in (a, b, c):
            tape("models", "promote", at(version), "--to", "prod")
        found = tape("models", "rollback", "mood", "--why", "too slow")
        assert (found.row["before"], found.row["after"], found.row["why"]) == (c.version, b.version, "too slow")
        assert f"next: tape models promote mood@{c.version} --to prod" in found.err
        assert tape("models", "rollback", "mood").row["after"] == a.version
        found = tape("models", "rollback", "mood")
        assert found.code == Exit.NOT_FOUND
        assert f"TAPE-2008 mood@prod was no other version before {a.version}" in found.err
        assert "way out: `tape models ls mood` lists the versions; promote one of them" in found.err

    def test_an_alias_that_there_is_not(self, tape: Tape, stock: Stock) -> None:
        tape("models", "promote", at(stock.put(b"1")), "--to", "prod")
        found = tape("models", "rollback", "mood", "--alias", "canary")
        assert found.code == Exit.NOT_FOUND
        assert "TAPE-2008 'mood' has no alias 'canary'" in found.err
        assert "way out: its aliases: prod" in found.err

    @given(st.lists(st.one_of(st.integers(0, 3), st.just(None)), max_size=40))
    def test_whatever_was_promoted_before_is_where_it_leads(self, moves: list[int | None]) -> None:
        stock = Stock(Memory())
        versions = [stock.put(bytes([number])).version for number in range(4)]
        shelf = Shelf(stock.blobs, "me", lambda: BORN)
        past: list[str] = []
        for move in moves:
            if move is None:
                if len(past) < 2:
                    with pytest.raises(NotFoundError):
                        rollback(shelf, "mood", "prod")
                    continue
                past.pop()
                assert rollback(shelf, "mood", "prod")[1].after == past[-1]
            else:
                promote(shelf, f"mood@{versions[move]}", "prod")
                if past[-2:-1] == [versions[move]]:
                    past.pop()  # back by hand
                elif past[-1:] != [versions[move]]:
                    past.append(versions[move])
            assert stock.registry.aliases("mood").aliases == {"prod": past[-1]}

    def test_of_many_who_promote_at_once_each_sees_what_it_replaces(self, stock: Stock) -> None:
        versions = [stock.put(bytes([number])) for number in range(8)]
        shelf = Shelf(stock.blobs, "me", lambda: BORN)
        won: list[tuple[str | None, str]] = []

        def go(version: ModelVersion) -> None:
            while True:
                try:
                    _, move = promote(shelf, at(version), "prod")
                except ConflictError as error:
                    assert error.code == "TAPE-3002"
                    continue
                assert move.after
                won.append((move.before, move.after))
                return

        threads = [threading.Thread(target=go, args=(version,)) for version in versions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        history = [(move.before, move.after) for move in stock.registry.aliases("mood").history]
        assert sorted(history, key=str) == sorted(won, key=str)
        assert [before for before, _ in history] == [None, *(after for _, after in history[:-1])], "none was lost"


class TestExport:
    def test_a_version_is_brought_into_a_folder(self, tape: Tape, stock: Stock, tmp_path: Path) -> None:
        version = stock.put(b"weights")
        found = tape("models", "export", "mood", str(tmp_path / "out"))
        assert (found.row["version"], found.row["files"], found.row["size"]) == (version.version, 2, 15)
        assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == b"weights"
        assert "it is an adapter: it needs its base, file:/models/tiny" in found.err
        (tmp_path / "out" / "adapter_config.json").unlink()
        assert "already" not in tape("models", "export", "mood", str(tmp_path / "out")).err, "taken up where it was"
        assert "it was there already" in tape("models", "export", "mood", str(tmp_path / "out")).err

    @pytest.mark.parametrize("there", ["notes.txt", "adapter_config.json", "deep/er.txt"])
    def test_a_folder_that_holds_anything_else_is_left_alone(
        self, tape: Tape, stock: Stock, tmp_path: Path, there: str
    ) -> None:
        version = stock.put(b"weights")
        (tmp_path / "out" / there).parent.mkdir(parents=True)
        (tmp_path / "out" / there).write_text("mine")
        found = tape("models", "export", "mood", str(tmp_path / "out"))
        assert found.code == Exit.INVALID
        assert f"TAPE-3001 {tmp_path / 'out'} holds {there}, which is not of {at(version)}" in found.err
        assert (tmp_path / "out" / there).read_text() == "mine"
        assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 1

    @pytest.mark.parametrize("lost", [b"flipped", None])
    @pytest.mark.parametrize("there", [None, "", "README.md"])
    def test_an_export_that_fails_leaves_nothing_behind(
        self, tape: Tape, stock: Stock, tmp_path: Path, there: str | None, lost: bytes | None
    ) -> None:
        files = {"README.md": b"a card", "deep/more.json": b"{}", "model.safetensors": b"weights"}
        artifact = publish(stock.blobs, files, job="j", kind="training", name="model")
        listed = read_manifest(stock.blobs, artifact).files
        stock.registry.add(stock.put(b"1").model_copy(update={"artifact": artifact, "version": version_of(listed)}))
        weights = blob_name(next(file.sha256 for file in listed if file.path == "model.safetensors"))
        if lost is None:
            stock.blobs.delete(weights)
        else:
            stock.blobs.put(weights, lost)
        out = tmp_path / "of" / "mine"
        if there is not None:
            out.mkdir(parents=True)
        if there:
            (out / there).write_bytes(files[there])
        found = tape("models", "export", f"mood@{version_of(listed)}", str(out))
        assert found.code != Exit.OK
        left = [path.relative_to(out.parent).as_posix() for path in out.parent.rglob("*")]
        assert sorted(left) == {None: [], "": ["mine"]}.get(there, ["mine", f"mine/{there}"])
        stock.blobs.put(weights, b"weights")
        assert tape("models", "export", f"mood@{version_of(listed)}", str(out)).code == Exit.OK
        assert {
            path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()
        } == files
        assert out.stat().st_mode & 0o777 == out.parent.stat().st_mode & 0o777, "with the rights of any new folder"

    def test_a_file_is_no_folder(self, tape: Tape, stock: Stock, tmp_path: Path) -> None:
        stock.put(b"1")
        (tmp_path / "out").write_text("mine")
        found = tape("models", "export", "mood", str(tmp_path / "out"))
        assert (found.code, f"TAPE-1010 {tmp_path / 'out'} is no folder" in found.err) == (Exit.USAGE, True)


class TestVerify:
    def test_every_byte_is_what_it_was(self, tape: Tape, stock: Stock) -> None:
        a, b = stock.put(b"1"), stock.put(b"2", "rank")
        assert tape("models", "verify", "mood").row == {
            "model": "mood", "version": a.version, "status": "ok", "files": 2,
        }  # fmt: skip
        found = tape("models", "verify", "--all")
        assert (found.code, [row["version"] for row in found.rows]) == (Exit.OK, [a.version, b.version])

    def test_each_broken_file_is_named_and_the_rest_is_looked_at(self, tape: Tape, stock: Stock) -> None:
        lost, well, rotten = stock.put(b"lost"), stock.put(b"well"), stock.put(b"rotten", "rank")
        weights = {
            version.version: blob_name(read_manifest(stock.blobs, version.artifact).files[1].sha256)
            for version in (lost, rotten)
        }
        stock.blobs.delete(weights[lost.version])
        stock.blobs.put(weights[rotten.version], b"rotteN")
        found = tape("models", "verify", "--all")
        assert found.code == Exit.FAILURE
        told = [(row["version"], row["status"], row.get("file"), row.get("code")) for row in found.rows]
        assert told == [
            (lost.version, "fail", None, None),
            (lost.version, "fail", "adapter_model.safetensors", "TAPE-2001"),
            (well.version, "ok", None, None),
            (rotten.version, "fail", None, None),
            (rotten.version, "fail", "adapter_model.safetensors", "TAPE-6007"),
        ]
        assert [row["name"] for row in found.rows if "file" in row] == list(weights.values())
        assert "2 broken files, 0 models that cannot be read" in found.err
        assert f"broken  {at(lost)}" in tape("models", "verify", "--all", "--output", "table").out

    def test_a_list_of_files_that_is_lost_or_another_version_s(self, tape: Tape, stock: Stock) -> None:
        lost, forged = stock.put(b"1"), stock.put(b"2", version="f" * 16)
        stock.blobs.delete(lost.artifact.uri.removeprefix("artifact:"))
        broken = [row for row in tape("models", "verify", "--all").rows if "file" in row]
        assert [(row["version"], row["file"], row["code"]) for row in broken] == [
            (lost.version, "the list of its files", "TAPE-2001"),
            (forged.version, "the list of its files", "TAPE-6007"),
        ]
        assert broken[1]["problem"].endswith(f"its files are not {at(forged)}")

    def test_a_version_that_cannot_be_read_keeps_nobody_from_the_others(self, tape: Tape, stock: Stock) -> None:
        stock.put(b"1")
        well = stock.put(b"2", "rank")
        stock.blobs.put(f"models/mood/versions/{'0' * 16}.json", b"{}")
        found = tape("models", "verify", "--all")
        assert (found.code, [row["version"] for row in found.rows]) == (Exit.FAILURE, [well.version])
        assert f"name=models/mood/versions/{'0' * 16}.json" in found.err
        assert "0 broken files, 1 models that cannot be read" in found.err

    @pytest.mark.parametrize("argv", [(), ("mood", "--all")])
    def test_one_version_or_all(self, tape: Tape, argv: tuple[str, ...]) -> None:
        found = tape("models", "verify", *argv)
        assert (found.code, "TAPE-1010 give a version, or --all" in found.err) == (Exit.USAGE, True)


class TestReproduce:
    def sent(self, ports: MemoryPorts, lane: str = "bulk") -> dict[str, Any]:
        (record,) = ports.of(f"tape.jobs.training.{lane}")
        found: dict[str, Any] = json.loads(record.value or b"")
        return found

    def test_the_request_is_sent_again_with_everything_pinned(
        self, tape: Tape, stock: Stock, ports: MemoryPorts
    ) -> None:
        version = stock.put(b"1", base=f"model:big@{'a' * 16}", validation=f"blob:v@sha256:{HASH}")
        found = tape("models", "reproduce", "mood", "--lane", "interactive", "--label", "a=b")
        assert (found.code, found.row["reproduces"], found.row["as"]) == (Exit.OK, at(version), "mood")
        value = self.sent(ports, "interactive")
        assert value["labels"] == {"a": "b", "reproduces": at(version)}
        asked = Training(**value["params"])
        assert (asked.base, asked.data, asked.validation) == (version.base, version.data, version.validation)
        assert (asked.steps, asked.threads, asked.lora.rank, asked.publish_as) == (3, 2, 8, "mood")

    def test_what_cannot_be_pinned_is_told(self, tape: Tape, stock: Stock, ports: MemoryPorts) -> None:
        stock.put(b"1")
        found = tape("models", "reproduce", "mood", "--as", "twin")
        assert "file:/models/tiny cannot be pinned: it is what the worker has there now" in found.err
        assert self.sent(ports)["params"]["publish_as"] == "twin"

    def answered(self, tape: Tape, ports: MemoryPorts, *argv: str, **fields: Any) -> Result:
        """Run it with --wait beside a worker that ends the job so."""
        publish = ports.publish

        def and_end(message: Any) -> Any:
            future = publish(message)
            if ".jobs." not in message.topic:
                outcome = Outcome(**{
                    "job": message.key, "kind": "training", "status": Status.SUCCEEDED, "attempt": 1, "worker": "w",
                    "finished_at": BORN, **fields,
                })  # fmt: skip
                told(ports, message.key, EventType(outcome.status.value), attempt=1, worker="w", outcome=outcome)
            return future

        ports.publish = and_end  # type: ignore[method-assign]
        return tape("models", "reproduce", *argv, "--wait", "--wait-timeout", "60")

    def test_the_same_bytes_are_told(self, tape: Tape, stock: Stock, ports: MemoryPorts) -> None:
        version = stock.put(b"1")
        found = self.answered(tape, ports, "mood", "--as", "twin", result={"model": f"twin@{version.version}"})
        assert found.code == Exit.OK
        assert (found.row["was"], found.row["is"]) == (at(version), f"twin@{version.version}")
        assert (found.row["identical"], "byte-identical" in found.err) == (True, True)

    def test_other_bytes_are_told_with_what_differs(self, tape: Tape, stock: Stock, ports: MemoryPorts) -> None:
        version, other = stock.put(b"1"), stock.put(b"2", "twin", processor="another")
        found = self.answered(tape, ports, "mood", "--as", "twin", result={"model": at(other)})
        assert found.code == Exit.FAILURE
        judged, *rows = found.rows
        assert (judged["was"], judged["is"], judged["identical"]) == (at(version), at(other), False)
        assert [row["field"] for row in rows] == ["processor", "file adapter_model.safetensors"]
        assert "not the same bytes; this differs:" in found.err

    def test_a_training_that_fails_is_told_as_it_is(self, tape: Tape, stock: Stock, ports: MemoryPorts) -> None:
        stock.put(b"1")
        failure = Failure(failure=FailureClass.PERMANENT, code="TAPE-6007", message="rows are not what they were")
        found = self.answered(tape, ports, "mood", status=Status.FAILED, failure=failure)
        assert (found.code, "TAPE-6007 rows are not what they were" in found.err) == (Exit.JOB, True)

    def test_a_worker_that_registers_nothing_is_told(self, tape: Tape, stock: Stock, ports: MemoryPorts) -> None:
        stock.put(b"1")
        found = self.answered(tape, ports, "mood")
        assert (found.code, "TAPE-6004 the training registered nothing" in found.err) == (Exit.JOB, True)
