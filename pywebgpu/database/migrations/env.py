"""Alembic's entry: the connection comes from `Store`, since there is no configuration file."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
