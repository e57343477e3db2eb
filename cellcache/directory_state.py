"""All that a directory has in one process: connections, locks, flights, counters, its background thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cellcache.cells import Cells
from cellcache.config import Settings
from cellcache.database_identity import database_identity
from cellcache.invalidations import Invalidations
from cellcache.maintenance import Maintenance
from cellcache.model import CellMapping
from cellcache.protocol import Held
from cellcache.purge import Purge
from cellcache.read_through import ReadThrough
from cellcache.region import open_region
from cellcache.signing import Signing
from cellcache.statistics import Counters
from cellcache.store import Store
from cellcache.write_through import WriteThrough


class DirectoryState:
    """Made from the settings alone, so that a child of a fork makes another and needs nothing of its parent's."""

    def __init__(self, settings: Settings) -> None:
        """Prepare everything and connect nothing."""
        self.store = Store(settings.database)
        keys, prefix = settings.cache.signing_keys, settings.cache.key_prefix
        self.signing = Signing(keys, prefix, self.store.agreement) if keys else None
        self.region, self.backend = open_region(
            settings.cache, name=database_identity(settings.database.sqlalchemy_url), signing=self.signing
        )
        self.lookup = self.backend.lookup
        self.held: Callable[[object], Held | None] = self.backend.held.get
        self.cells = Cells(self.store, settings.cells, settings.database)
        self.cell_of_value: Mapping[object, CellMapping] = self.cells.by_value
        self.counters = Counters()
        self.count_hit = self.counters.hits.add
        self.invalidations = Invalidations(self.store, self.backend, settings.cache.durable)
        self.maintenance = Maintenance(self.invalidations, self.cells, self.signing, refresh_s=settings.cells.refresh_s)
        self.read_through = ReadThrough(self.store, self.backend, self.cells, self.counters, settings)
        self.write_through = WriteThrough(self.store, self.backend, self.invalidations, self.counters, settings.cache)
        self.purge = Purge(self.store, self.cells, self.write_through)

    def close(self) -> None:
        """End the background thread, and close every connection: those in use, when they are given back."""
        self.maintenance.stop()
        self.invalidations.flush()
        self.backend.close()
        self.cells.close()
        self.store.close()
