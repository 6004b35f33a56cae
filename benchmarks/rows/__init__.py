"""The rows of the suite, one file each. A row has `measure(scale, report)`, and `prepare(scale)` if it compiles anything."""
