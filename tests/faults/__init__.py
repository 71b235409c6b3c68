"""Real faults against the store and the jobs: `python -m tests.faults`, in short as tests."""
