//! What guests may take, and whose turn it is: memory ([`growth`]), CPU ([`cpu`], [`shares`], [`epoch`], [`priority`]), instances ([`slots`], [`parked`]),
//! seats ([`fair_queue`]), the fixed [`limits`], and what a node can be told to raise ([`guest`]). Host interfaces and the engine both stand on it.

pub(crate) mod cpu;
pub(crate) mod epoch;
pub(crate) mod fair_queue;
pub(crate) mod growth;
pub(crate) mod guest;
pub(crate) mod limits;
pub(crate) mod parked;
pub(crate) mod priority;
pub(crate) mod shares;
pub(crate) mod slots;
pub(crate) mod thread_clock;
