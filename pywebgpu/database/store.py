"""Contributions in a database: SQLite by default, PostgreSQL by its URL.

One row per contributor and key; a contributor who measures again replaces what they said. Who
contributed is kept as a keyed hash of their network, so that one network counts once and the
database can't be read back into addresses.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import secrets
import time
from collections.abc import Collection, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from ..errors import InputError
from ..records import Record, records_from_json
from .aggregate import aggregate

CONTRIBUTORS_PER_KEY = 64
"""The latest so many contributions of a key are kept: enough for a median, and a bound on space."""

_metadata = sa.MetaData()
_contributions = sa.Table(
    "contributions",
    _metadata,
    sa.Column("target", sa.String(40), primary_key=True),
    sa.Column("device", sa.String(500), primary_key=True),
    sa.Column("kernel", sa.String(200), primary_key=True),
    sa.Column("generator_version", sa.String(40), primary_key=True),
    sa.Column("contributor", sa.String(32), primary_key=True),
    sa.Column("received", sa.Float, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
)
_settings = sa.Table(
    "settings",
    _metadata,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
_KEY = (
    _contributions.c.target,
    _contributions.c.device,
    _contributions.c.kernel,
    _contributions.c.generator_version,
)


def network_of(address: str) -> str:
    """The network that counts as one contributor: /24 of IPv4, /48 of IPv6.

    Providers hand out addresses by such blocks, so whoever has one address often has the block.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address  # a Unix socket, a test client
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    prefix = 24 if ip.version == 4 else 48
    return str(ipaddress.ip_network(f"{ip}/{prefix}", strict=False))


class Store:
    """Contributions and what they come to. Methods may be called from several threads.

    url: SQLAlchemy's, such as "sqlite:///records.db" or
        "postgresql+psycopg://user:password@host/name". Tables are made or migrated when it opens.

    Raises:
        InputError: the URL cannot be read, its driver is missing, or the database cannot be opened.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = sa.make_url(url)
            if parsed.get_backend_name() == "sqlite":
                # Waits for the one writer that SQLite allows, rather than failing at once.
                self._engine = sa.create_engine(parsed, connect_args={"timeout": 30})
                sa.event.listen(self._engine, "connect", _configure_sqlite)
            else:
                self._engine = sa.create_engine(parsed, pool_pre_ping=True)
            self._migrate()
            self._secret = self._make_secret()
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise InputError(
                f"is not a database that can be used: {error}",
                where="--database",
                got=url,
                expected="sqlite:///FILE, or postgresql+psycopg://USER:PASSWORD@HOST/NAME",
                remedy="PostgreSQL needs `pip install 'psycopg[binary]'`",
            ) from error
        except SQLAlchemyError as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            raise InputError(
                f"the database cannot be opened: {cause}",
                where=sa.make_url(url).render_as_string(hide_password=True),
                remedy="Check that it exists, that it may be written to, and the password",
            ) from error

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self._engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def _make_secret(self) -> bytes:
        """The key of the contributors' hashes: made once, so that they survive a restart."""
        made = {"name": "contributor-key", "value": secrets.token_hex(32)}
        with self._engine.begin() as connection:
            connection.execute(self._insert(_settings).values(made).on_conflict_do_nothing())
            query = sa.select(_settings.c.value).where(_settings.c.name == made["name"])
            return bytes.fromhex(connection.execute(query).scalar_one())

    def _insert(self, table: sa.Table) -> Any:
        """`insert` that knows what to do about rows that are there: its dialects share the form."""
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        return dialect.insert(table)

    def contributor(self, address: str) -> str:
        """The name under which a client's contributions are kept."""
        network = network_of(address).encode()
        return hmac.new(self._secret, network, hashlib.sha256).hexdigest()[:32]

    def contribute(self, contributor: str, records: Iterable[Record]) -> int:
        """Keep what one contributor measured, all of it or, on an error, nothing; how many."""
        now = time.time()
        rows = [
            {
                "target": record.target,
                "device": record.device,
                "kernel": record.kernel,
                "generator_version": record.generator_version,
                "contributor": contributor,
                "received": now,
                "record": json.dumps(asdict(record), sort_keys=True),
            }
            for record in sorted(records, key=lambda r: r.key)
        ]
        if not rows:
            return 0
        statement = self._insert(_contributions)
        statement = statement.on_conflict_do_update(
            index_elements=[*_KEY, _contributions.c.contributor],
            set_={name: statement.excluded[name] for name in ("received", "record")},
        )
        with self._engine.begin() as connection:
            connection.execute(statement, rows)
            for row in rows:
                self._forget_oldest(connection, row)
        return len(rows)

    def _forget_oldest(self, connection: sa.Connection, row: dict[str, Any]) -> None:
        same = sa.and_(*(column == row[column.name] for column in _KEY))
        query = (
            sa.select(_contributions.c.received)
            .where(same)
            .order_by(_contributions.c.received.desc())
            .offset(CONTRIBUTORS_PER_KEY)
            .limit(1)
        )
        oldest = connection.execute(query).scalar()
        if oldest is not None:
            old = _contributions.c.received <= oldest
            connection.execute(_contributions.delete().where(same, old))

    def winners(
        self,
        target: str,
        generator_version: str,
        *,
        confirmations: int,
        device: str | None = None,
        kernels: Collection[str] = (),
    ) -> tuple[Record, ...]:
        """The common records (see `aggregate`) of a target, sorted by key.

        device: only this one's; None for all, for a device that was never seen to choose from.
        kernels: only these; empty for all.
        """
        query = sa.select(*_KEY, _contributions.c.record).where(
            _contributions.c.target == target,
            _contributions.c.generator_version == generator_version,
        )
        if device is not None:
            query = query.where(_contributions.c.device == device)
        if kernels:
            query = query.where(_contributions.c.kernel.in_(kernels))
        groups: dict[tuple[str, ...], list[str]] = {}
        with self._engine.connect() as connection:
            for *key, record in connection.execute(query.order_by(*_KEY)):
                groups.setdefault(tuple(key), []).append(record)
        found = []
        for texts in groups.values():
            if len(texts) < confirmations:
                continue
            records = [_read(text) for text in texts]
            common = aggregate([r for r in records if r is not None], confirmations)
            if common is not None:
                found.append(common)
        return tuple(found)

    def counts(self) -> dict[str, int]:
        """How many contributions, keys and contributors there are."""
        keys = sa.select(*_KEY).distinct().subquery()
        people = sa.func.count(sa.distinct(_contributions.c.contributor))
        with self._engine.connect() as connection:
            one = connection.execute(sa.select(sa.func.count(), people).select_from(_contributions))
            contributions, contributors = one.one()
            number = connection.execute(sa.select(sa.func.count()).select_from(keys)).scalar_one()
        return {"contributions": contributions, "keys": number, "contributors": contributors}

    def close(self) -> None:
        self._engine.dispose()


def _read(text: str) -> Record | None:
    """A stored record; None for one of another generator version."""
    return next(iter(records_from_json(f'{{"format_version": 1, "records": [{text}]}}')), None)


def _configure_sqlite(connection: Any, record: object) -> None:
    """Readers do not wait for the writer, and a crash of the machine loses no commit before the
    last checkpoint."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
