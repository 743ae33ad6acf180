"""The contract: what travels between clients, workers and views. Standard library and pydantic only."""
