//! JSON, merge and strategic merge patches over structured values and a schema.
