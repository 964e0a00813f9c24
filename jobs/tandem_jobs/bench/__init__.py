"""The benchmarks: `tandem bench`."""
