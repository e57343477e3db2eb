"""Which cell does this instance live in? `cellcache.resolve_cell(uuid)` knows."""
