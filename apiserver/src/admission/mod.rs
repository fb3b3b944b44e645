//! Admission: one ordered table of plugins, one file per plugin.
