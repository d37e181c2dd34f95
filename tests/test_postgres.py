"""The tests' PostgreSQL server itself: copies of databases, restarts."""

from __future__ import annotations

import psycopg

from tests.postgres import PostgresServer


def test_a_database_outlives_a_crash_of_its_server_at_the_same_place() -> None:
    with PostgresServer.started() as server:
        url = server.create_database()
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE a (n integer)")
            connection.execute("INSERT INTO a VALUES (7)")
        copy = server.create_database(template=url.rpartition("/")[2])
        server.restart("immediate")
        for each in (url, copy):
            with psycopg.connect(each) as connection:
                assert connection.execute("SELECT n FROM a").fetchall() == [(7,)]
        server.stop()
        assert not server.is_up()
        server.start()
        server.drop_database(url)
