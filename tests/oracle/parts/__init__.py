"""Parts of the oracle, by job: see ../README.md."""
