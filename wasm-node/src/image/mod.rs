//! Images: reference -> verified blobs -> a module ready to run. [`Images`] pulls from the built-in registry (or a
//! `file:///` folder that was allowed) into the blob store that the registry itself serves from, checks the layout, and
//! has the engine compile the module at pull, so that starting a pod never compiles.

pub mod reference;
