"""What is timed, and against whom. `benchmarks/README.md` says what each program measures."""
