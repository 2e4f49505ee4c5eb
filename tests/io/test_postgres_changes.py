"""`ReadPostgresChanges`: rows first, then each change once, whatever is broken off, killed or restored."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from apache_beam.utils.shared import Shared
from apache_beam.utils.timestamp import Timestamp

from beam_agents.errors import BeamAgentsError, ConfigurationError, StoredFormUnknown
from beam_agents.io.postgres import acknowledge
from beam_agents.io.postgres.place import ChangesLost, ChangesPosition, Place, Seen, lsn_number, lsn_text
from beam_agents.io.postgres.read import FollowDoFn
from beam_agents.io.postgres.rows import RowDecoder
from beam_agents.io.postgres.source import Source
from beam_agents.io.postgres.transactions import Transactions
from runners.postgres import PostgresServer
from tests.changes_kit import Database, Reading, replicating_server

TABLE = "public.readings"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with replicating_server() as started:
        yield started


@pytest.fixture
def database(server: PostgresServer) -> Iterator[Database]:
    made = Database(server)
    yield made
    made.drop_slot()


class Follower:
    """A `FollowDoFn` that is looked at by hand: its state, and what it emitted."""

    def __init__(self, database: Database, **more: Any) -> None:
        tables = more.get("tables", {TABLE: Reading})
        create, snapshot = more.get("create", True), more.get("snapshot", True)
        self._source = Source(database.url, None, tuple(sorted(tables)), database.slot, database.slot, create, snapshot)
        self._decode = RowDecoder(tables, more.get("key", "device"))
        self._most = more.get("most", 500)
        self.value: bytes | None = None
        self.tickets: list[Any] = []
        self.restart()

    def restart(self, state: bytes | None = None) -> None:
        """Another process goes on from the state."""
        self.value = state or self.value
        self.dofn = FollowDoFn(self._source, self._decode, self._most, Shared(), checkpoints=True)
        self.dofn.setup()

    def read(self) -> bytes | None:
        return self.value

    def write(self, value: bytes) -> None:
        self.value = value

    def set(self, at: float) -> None:
        """Of the timer."""

    def look(self) -> list[Any]:
        """One look: (id, operation, row's id and value), or the messages of bad rows."""
        found: list[Any] = []
        for element in self.dofn.look(fired=Timestamp.now(), position=self, look=self):
            if getattr(element, "tag", None) == "tickets":
                self.tickets.append(element.value.value)
            elif hasattr(element, "tag"):
                found.append(element.value.value[1].message)
            else:
                found.append(element.value[1])
        return found

    def until(self, condition: Callable[[list[Any]], bool]) -> list[Any]:
        """Looks until what came is enough."""
        found: list[Any] = []
        deadline = time.monotonic() + 60
        while not condition(found):
            assert time.monotonic() < deadline, found
            found += self.look()
            time.sleep(0.02)
        return found

    def next(self, count: int) -> list[Any]:
        """The next so many, and what one more look gives."""
        return self.until(lambda found: len(found) >= count) + self.look()

    def started(self) -> None:
        """Looks until the rows were read."""
        self.until(lambda _: self.value is not None and not self.position.table)

    @property
    def position(self) -> ChangesPosition:
        return ChangesPosition.from_json(self.value or b"")

    def checkpoint(self) -> None:
        """Has the finalizers run, of all bundles until now."""
        tickets, self.tickets = self.tickets, []
        for ticket in tickets:
            assert self.dofn._holder is not None
            self.dofn._holder.finalized(ticket)

    def end(self) -> None:
        self.dofn.teardown()


@pytest.fixture
def follow(database: Database, request: pytest.FixtureRequest) -> Callable[..., Follower]:
    def make(**more: Any) -> Follower:
        made = Follower(database, **more)
        request.addfinalizer(lambda: made.end())
        return made

    return make


def told(found: list[Any]) -> list[tuple[str, int | None]]:
    return [(event.event.operation, event.event.row and event.event.row.id) for event in found]


# ---- rows first, then changes ----


def test_rows_come_first_and_then_changes_in_the_order_of_their_commits(
    database: Database, follow: Callable[..., Follower]
) -> None:
    database.insert(1, 2)
    follower = follow()
    found = follower.next(2)
    assert told(found) == [("snapshot", 1), ("snapshot", 2)]
    ((xid,),) = database.sql("SELECT DISTINCT xmin::text FROM readings")
    assert [event.id for event in found] == [f"{TABLE}-1-{xid}", f"{TABLE}-2-{xid}"]
    database.insert(3)
    database.sql("UPDATE readings SET value = 9 WHERE id = 1", "UPDATE readings SET device = 'fan' WHERE id = 2")
    database.sql("DELETE FROM readings WHERE id = 3")
    changes = follower.next(4)
    assert told(changes[:3]) == [("insert", 3), ("update", 1), ("update", 2)]
    assert "delete" in changes[3]
    assert changes[1].event.after == Reading(id=1, device="pump", value=9)
    first, second = changes[1], changes[2]
    assert (first.id, second.id) == (f"{first.event.position}-0", f"{first.event.position}-1")
    assert first.event.transaction == second.event.transaction
    assert first.event.committed == second.event.committed


def test_it_goes_on_where_its_state_says_with_the_same_ids(database: Database, follow: Callable[..., Follower]) -> None:
    follower = follow()
    follower.started()
    kept = follower.value
    database.insert(*range(5))
    database.insert(5)
    first = follower.next(6)
    follower.end()
    follower.restart(kept)
    assert follower.next(6) == first
    database.insert(6)
    assert told(follower.next(1)) == [("insert", 6)]


def test_a_bundle_that_did_not_count_is_read_again_in_the_same_process(
    database: Database, follow: Callable[..., Follower]
) -> None:
    follower = follow()
    follower.started()
    kept = follower.value
    database.insert(1)
    first = follower.next(1)
    follower.value = kept
    assert follower.next(1) == first


def test_a_large_transaction_is_cut_and_goes_on_in_its_middle(
    database: Database, follow: Callable[..., Follower]
) -> None:
    follower = follow(most=3)
    follower.started()
    database.insert(*range(8))
    database.insert(8)
    found = follower.until(len)
    assert told(found) == [("insert", n) for n in range(3)]
    assert (follower.position.commit, follower.position.done) == (found[0].event.position, 3)
    follower.end()
    follower.restart()
    rest = follower.next(6)
    assert told(rest) == [("insert", n) for n in range(3, 9)]
    assert [event.id for event in found + rest[:5]] == [f"{found[0].event.position}-{n}" for n in range(8)]


def test_a_first_reading_that_is_broken_off_loses_and_doubles_nothing(
    database: Database, follow: Callable[..., Follower]
) -> None:
    database.insert(*range(10))
    follower = follow(most=4, key=lambda change: change.table)
    found = follower.until(len)
    assert told(found) == [("snapshot", n) for n in range(4)]
    follower.end()
    database.insert(20)  # all of this is told as changes, and only so
    database.sql("UPDATE readings SET value = -1 WHERE id IN (1, 7)")
    database.sql("DELETE FROM readings WHERE id IN (2, 8)")
    database.sql("UPDATE readings SET id = 30 WHERE id = 9")
    follower.restart()
    rest = follower.next(3 + 6)
    assert told(rest[:3]) == [("snapshot", n) for n in (4, 5, 6)]
    assert sorted(told(rest[3:6])) == [("insert", 20), ("update", 1), ("update", 7)]
    assert sorted(told(rest[6:])) == [("delete", 2), ("delete", 8), ("update", 30)]


def test_what_is_written_during_the_first_reading_comes_once(
    database: Database, follow: Callable[..., Follower]
) -> None:
    database.sql("INSERT INTO readings SELECT n, 'pump', n FROM generate_series(1, 1000) n")

    def write() -> None:
        with psycopg.connect(database.server.url(database.name), autocommit=True) as connection:
            for n in range(1, 100):
                connection.execute(f"UPDATE readings SET value = -value WHERE id IN ({n}, {1000 - n})")
                connection.execute(f"DELETE FROM readings WHERE id IN ({n * 7}, {n * 7 - 1})")
                connection.execute(f"INSERT INTO readings VALUES ({4000 + n}, 'new', 1)")

    writer = threading.Thread(target=write)
    writer.start()
    follower = follow(key=lambda change: change.table)
    rows: dict[int, Any] = {}
    seen: list[str] = []
    deadline = time.monotonic() + 60
    while writer.is_alive() or rows != dict(database.sql("SELECT id, value FROM readings")):
        assert time.monotonic() < deadline
        found = follower.look()
        seen += [event.id for event in found]
        _apply(rows, found)
    writer.join()
    assert len(seen) == len(set(seen))


def _apply(rows: dict[int, Any], events: list[Any]) -> None:
    for event in events:
        change = event.event
        if change.operation == "delete":
            del rows[change.row.id]
        else:
            assert change.operation == "update" or change.row.id not in rows, change
            rows[change.row.id] = change.row.value


def test_rows_need_not_be_read(database: Database, follow: Callable[..., Follower]) -> None:
    database.insert(1)
    database.make_slot()
    database.insert(2)
    assert told(follow(snapshot=False).next(1)) == [("insert", 2)]


def test_a_table_without_a_primary_key_is_read_with_its_whole_rows(
    database: Database, follow: Callable[..., Follower]
) -> None:
    database.sql("CREATE TABLE plain (id int, device text)", "ALTER TABLE plain REPLICA IDENTITY FULL")
    database.sql("INSERT INTO plain SELECT n, 'fan' FROM generate_series(0, 6) n")
    follower = follow(tables={"public.plain": Reading}, most=3)
    found = follower.until(len)
    follower.end()
    follower.restart()
    found += follower.next(4)
    assert told(found) == [("snapshot", n) for n in range(7)]
    database.sql("DELETE FROM plain WHERE id = 3")
    assert told(follower.next(1)) == [("delete", 3)]


def test_rows_with_keys_of_several_columns_have_ids_of_their_own(
    database: Database, follow: Callable[..., Follower]
) -> None:
    database.sql("CREATE TABLE pairs (a text, b text, id int, PRIMARY KEY (b, a))")
    database.sql("INSERT INTO pairs VALUES ('x, y', 'z', 1), ('x', 'y, z', 2), ('O''Hara \\', '%s', 3), ('x', 'a', 4)")
    follower = follow(tables={"public.pairs": Reading}, most=1, key=lambda change: change.table)
    found: list[Any] = []
    for _ in range(4):
        found += follower.until(len)
        follower.end()
        follower.restart()
    assert sorted(event.event.row.id for event in found) == [1, 2, 3, 4]
    assert len({event.id for event in found}) == 4
    ((xid,),) = database.sql("SELECT DISTINCT xmin::text FROM pairs")
    assert f'public.pairs-["a", "x"]-{xid}' in {event.id for event in found}


def test_several_tables_are_told_apart(database: Database, follow: Callable[..., Follower]) -> None:
    database.sql("CREATE TABLE devices (id int PRIMARY KEY, device text)", "INSERT INTO devices VALUES (7, 'fan')")
    database.insert(1)
    follower = follow(tables={TABLE: Reading, "public.devices": Reading})
    assert [event.event.table for event in follower.next(2)] == ["public.devices", TABLE]
    database.sql("INSERT INTO devices VALUES (8, 'fan')", "INSERT INTO readings VALUES (8, 'fan')")
    changes = follower.next(2)
    assert [event.event.table for event in changes] == ["public.devices", TABLE]
    assert len({event.id for event in changes}) == 2


# ---- acknowledged after the checkpoint ----


def test_the_server_is_told_only_after_three_checkpoints(
    database: Database, follow: Callable[..., Follower], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acknowledge, "_TICKET_SECONDS", 0.0)
    follower = follow()
    follower.started()
    before = database.confirmed()
    database.insert(1)
    follower.next(1)
    holder, changed, checkpoints = follower.dofn._holder, lsn_number(follower.position.lsn), 0
    assert holder is not None
    assert holder._feed is not None
    while holder._feed.acknowledged < changed:
        assert before <= database.confirmed() < changed
        follower.until(lambda _: bool(follower.tickets))
        checkpoints += follower.tickets[0].first >= changed
        follower.checkpoint()
    assert checkpoints == 3
    until = time.monotonic() + 30
    while database.confirmed() < changed:
        assert time.monotonic() < until


def test_the_log_moves_on_though_only_other_tables_change(database: Database, follow: Callable[..., Follower]) -> None:
    follower = follow()
    follower.started()
    ((end,),) = database.sql("CREATE TABLE other (a int)", "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
    until = time.monotonic() + 60
    while database.confirmed() < end:
        assert time.monotonic() < until
        assert follower.look() == []
        follower.checkpoint()
        time.sleep(0.05)


def test_a_ticket_of_a_reader_that_was_replaced_moves_nothing(
    database: Database, follow: Callable[..., Follower]
) -> None:
    follower = follow()
    follower.started()
    kept = follower.value
    database.insert(1)
    follower.next(1)
    follower.until(lambda _: bool(follower.tickets))
    old = follower.tickets[0]
    follower.value = kept
    follower.look()
    holder = follower.dofn._holder
    assert holder is not None
    holder.finalized(old._replace(third=old.first))
    assert holder._feed is not None
    assert holder._feed.acknowledged == 0


# ---- what goes wrong ----


def test_a_server_that_was_killed_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    with replicating_server() as server:
        database = Database(server)
        follower = Follower(database)
        follower.started()
        database.insert(1)
        assert told(follower.next(1)) == [("insert", 1)]
        server.kill()
        until = time.monotonic() + 1
        while time.monotonic() < until:
            assert follower.look() == []
            time.sleep(0.05)
        server.start()
        database.insert(2, 3)
        assert told(follower.next(2)) == [("insert", 2), ("insert", 3)]
        assert any("goes on trying" in record.getMessage() for record in caplog.records)
        follower.end()


def test_a_slot_that_another_process_holds_is_waited_for(database: Database, follow: Callable[..., Follower]) -> None:
    holds, waits = follow(), follow()
    holds.started()
    database.insert(1)
    waits.restart(holds.value)
    assert told(holds.next(1)) == [("insert", 1)]
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        assert waits.look() == []
    holds.end()
    assert told(waits.next(1)) == [("insert", 1)]


def stopped(follower: Follower) -> BeamAgentsError:
    with pytest.raises(BeamAgentsError) as caught:
        follower.until(lambda _: False)
    return caught.value


def test_lost_changes_stop_the_job(database: Database, follow: Callable[..., Follower]) -> None:
    follower = follow()
    follower.started()
    state = follower.position
    follower.end()
    server = state.model_copy(update={"system": "1"})
    follower.restart(server.to_json())
    error = stopped(follower)
    assert isinstance(error, ChangesLost)
    assert "the job's state is of the server 1" in str(error)
    follower.end()
    follower.restart(state.model_copy(update={"lsn": "0/1"}).to_json())
    assert "restored from an old savepoint" in str(stopped(follower))
    follower.end()
    database.drop_slot()
    follower.restart(state.to_json())
    assert f"there is no slot '{database.slot}'" in str(stopped(follower))
    assert f"there is no slot '{database.slot}'" in str(stopped(follower)), "and again at each try"


def test_a_slot_that_the_server_gave_up_stops_the_job(follow: Callable[..., Follower], database: Database) -> None:
    follower = follow()
    follower.started()
    follower.end()
    with psycopg.connect(database.server.url(database.name), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
        connection.execute("SELECT pg_reload_conf()")
        for _ in range(3):
            connection.execute("SELECT pg_logical_emit_message(true, '', 'x'), pg_switch_wal()")
        connection.execute("CHECKPOINT")
        connection.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        connection.execute("SELECT pg_reload_conf()")
    follower.restart()
    assert "has given up slot" in str(stopped(follower))


def test_a_server_that_keeps_too_little_in_its_log_is_named() -> None:
    with replicating_server(wal_level="replica") as server:
        follower = Follower(Database(server))
        assert "ALTER SYSTEM SET wal_level = logical" in str(stopped(follower))
        follower.end()


@pytest.mark.parametrize(
    ("statements", "more", "expected"),
    [
        ([], {"tables": {"public.nothing": Reading}}, "no table 'public.nothing'"),
        (["CREATE TABLE plain (id int)"], {"tables": {"public.plain": Reading}}, "has no primary key"),
        ([], {"create": False}, "CREATE PUBLICATION"),
        (["CREATE PUBLICATION {slot} FOR TABLE readings"], {"create": False}, "pg_create_logical_replication_slot"),
        (["CREATE TABLE other (id int)", "CREATE PUBLICATION {slot} FOR TABLE other"], {}, "ALTER PUBLICATION"),
        (["SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"], {}, "must be older than its slot"),
        (["SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"], {}, "not for pgoutput"),
        (["SELECT pg_create_physical_replication_slot('{slot}')"], {}, "physical replication"),
    ],
)
def test_what_is_missing_on_the_server_is_told_with_the_statement(
    database: Database,
    follow: Callable[..., Follower],
    statements: list[str],
    more: dict[str, Any],
    expected: str,
) -> None:
    for statement in statements:
        try:
            database.sql(statement.format(slot=database.slot))
        except psycopg.errors.UndefinedFile:
            pytest.skip("the server has no test_decoding")
    error = stopped(follow(**more))
    assert isinstance(error, ConfigurationError)
    assert expected in str(error)


@pytest.mark.parametrize(("attributes", "expected"), [("", "REPLICATION"), ("REPLICATION", "CREATE PUBLICATION")])
def test_a_right_that_is_missing_is_named(
    database: Database, follow: Callable[..., Follower], attributes: str, expected: str
) -> None:
    role = f"r{database.slot}"
    database.sql(f"CREATE ROLE {role} LOGIN PASSWORD '{database.server.password}' {attributes}")
    follower = follow()
    follower.end()
    follower._source = Source(
        database.url.replace("postgres@", f"{role}@"), None, (TABLE,), database.slot, database.slot, True, True
    )
    follower.restart()
    assert expected in str(stopped(follower))


def test_columns_may_come_and_go(database: Database, follow: Callable[..., Follower]) -> None:
    follower = follow(key=lambda change: change.table)
    follower.started()
    database.sql("ALTER TABLE readings ADD COLUMN more text DEFAULT 'x'")
    database.insert_into("readings (id, device)", "(1, 'pump')")
    database.sql("ALTER TABLE readings ADD COLUMN number serial", "ALTER TABLE readings DROP CONSTRAINT readings_pkey")
    database.sql("ALTER TABLE readings DROP COLUMN id, ADD PRIMARY KEY (number)")
    database.insert_into("readings (device)", "('pump')")
    database.sql("ALTER TABLE readings RENAME COLUMN number TO id")
    database.insert_into("readings (device)", "('pump')")
    first, bad, last = follower.next(3)
    assert first.event.after == Reading(id=1, device="pump")
    assert bad.startswith("insert ")
    assert "id: Field required" in bad
    assert last.event.after == Reading(id=3, device="pump")


# ---- places ----


def test_places_are_stored_as_they_are_read(follow: Callable[..., Follower]) -> None:
    place = Place("77", lsn_number("16/B374D848"), lsn_number("16/B374D900"), 3, "7:9:8", 5, TABLE, ("1", "a"))
    assert ChangesPosition.from_json(ChangesPosition.of(place).to_json()).place() == place
    stored = b'{"schema_version":1,"system":"77","lsn":"16/B374D848","commit":"16/B374D900","done":3,'
    stored += b'"seen":"7:9:8","until":"0/5","table":"public.readings","key":["1","a"]}'
    assert ChangesPosition.of(place).to_json() == stored
    with pytest.raises(StoredFormUnknown):
        ChangesPosition.from_json(b'{"schema_version":2,"system":"77","lsn":"0/1"}')


def test_a_word_of_the_server_before_a_transaction_that_is_done_in_part_does_not_begin_it_anew() -> None:
    transactions = Transactions(Place("77", lsn=100, commit=300, done=2))
    assert transactions.reach(200) is not None
    assert transactions.place == Place("77", lsn=200, commit=300, done=2)
    transactions.reach(400)
    assert transactions.place == Place("77", lsn=400)


def test_a_stream_whose_socket_has_a_high_number_is_read(database: Database, follow: Callable[..., Follower]) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4_096, before[1]), before[1]))
    taken = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while taken[-1] < 1_100:
            taken.append(os.dup(taken[0]))
        follower = follow()
        follower.started()
        database.insert(1)
        assert told(follower.next(1)) == [("insert", 1)]
        follower.end()
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("number", [0, 1, (1 << 32) - 1, 1 << 32, (1 << 64) - 1])
def test_places_in_the_log_are_written_as_postgresql_does(number: int) -> None:
    assert lsn_number(lsn_text(number)) == number


def test_a_snapshot_sees_what_had_ended_before_it() -> None:
    seen = Seen("10:20:12,15")
    assert [xid for xid in range(8, 22) if xid in seen] == [8, 9, 10, 11, 13, 14, 16, 17, 18, 19]
    epoch = 5 << 32
    wrapped = Seen(f"{epoch - 2}:{epoch + 3}:{epoch}")
    assert (1 << 32) - 3 in wrapped
    assert (1 << 32) - 1 in wrapped
    assert 0 not in wrapped
    assert 2 in wrapped
    assert 3 not in wrapped


def test_a_row_whose_transaction_is_billions_old_was_there() -> None:
    end = (5 << 32) + 100
    seen = Seen(f"{end - 5}:{end}:{end - 2}")
    found = [xid for xid in (2, 90, 94, 97, 98, 99, 100, 102, 103, 4_000_000_000) if seen.missed(xid, end + 3)]
    assert found == [98, 100, 102]
