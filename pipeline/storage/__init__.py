"""Where the files of a workspace are, a folder or an object store with copies here, and the locks on them."""

from pipeline.storage.backend import check_url, is_url
from pipeline.storage.local import LOCAL, LocalStorage
from pipeline.storage.object_storage import ObjectStorage, default_cache, distrust_listings, storage_at, storage_of
from pipeline.storage.protocol import Storage

__all__ = [
    "LOCAL",
    "LocalStorage",
    "ObjectStorage",
    "Storage",
    "check_url",
    "default_cache",
    "distrust_listings",
    "is_url",
    "storage_at",
    "storage_of",
]
