"""What the tests of "never stale, never down" are made of: faults, histories of calls, and the judge of both."""
