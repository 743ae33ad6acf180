"""The other queues' workers: they run in an environment of their own, never in Tickertape's."""
