"""What `benchmarks/queue.py` is made of: services, systems, measures, the report."""
