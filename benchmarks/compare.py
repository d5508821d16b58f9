"""Compare two reports of benchmarks: `python benchmarks/compare.py OLD NEW`; what it does is in the package."""

from specvit_benchmarks.compare import main

if __name__ == "__main__":
    main()
