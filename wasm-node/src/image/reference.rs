//! Image references: parsed once, with upstream's rules and messages.
