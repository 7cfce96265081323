"""Contributions, and the service's own settings."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "contributions",
        sa.Column("target", sa.String(40), primary_key=True),
        sa.Column("device", sa.String(500), primary_key=True),
        sa.Column("kernel", sa.String(200), primary_key=True),
        sa.Column("generator_version", sa.String(40), primary_key=True),
        sa.Column("contributor", sa.String(32), primary_key=True),
        sa.Column("received", sa.Float, nullable=False),
        sa.Column("record", sa.Text, nullable=False),
    )
    op.create_table(
        "settings",
        sa.Column("name", sa.String(40), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("settings")
    op.drop_table("contributions")
