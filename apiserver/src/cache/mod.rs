//! The one in-memory copy of every object: multi-version map, event rings, indexes, encoded bytes.
