"""Storage of a workspace (a folder, or an object store with local copies) and the locks on it."""

from pipeline.storage.backend import check_url, is_url
from pipeline.storage.folder import LOCAL, Storage
from pipeline.storage.listing import distrust_listings, trusted_since
from pipeline.storage.object_storage import ObjectStorage, default_cache, storage_at, storage_of

__all__ = [
    "LOCAL",
    "ObjectStorage",
    "Storage",
    "check_url",
    "default_cache",
    "distrust_listings",
    "is_url",
    "storage_at",
    "storage_of",
    "trusted_since",
]
