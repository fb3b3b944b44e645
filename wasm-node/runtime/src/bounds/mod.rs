//! Resource bounds and scheduling of guests: memory ([`growth`]), CPU ([`cpu`], [`shares`], [`epoch`], [`priority`]),
//! instances ([`slots`], [`parked`]), seats ([`fair_queue`]), fixed [`limits`] and bounds with a flag ([`guest`], [`census`]).

pub(crate) mod census;
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
