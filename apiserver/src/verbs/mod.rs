//! The verbs, generic over a row of the resource table: create, get, list, watch, update, patch, delete.
