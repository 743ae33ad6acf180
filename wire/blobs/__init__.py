"""The store: named bytes with verified hashes (`port`), in a directory, in an S3 bucket or in memory."""

from wire.blobs.address import open_store
from wire.blobs.port import ABSENT, Blob, Blobs, Reader, Source

__all__ = ["ABSENT", "Blob", "Blobs", "Reader", "Source", "open_store"]
