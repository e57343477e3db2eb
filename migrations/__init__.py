"""The history of cellcache's tables, as Alembic reads it; `cellcache.schema` runs it."""
