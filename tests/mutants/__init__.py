"""Small changes to the heart of the library, one at a time, and whether its tests notice: `make mutants`."""
